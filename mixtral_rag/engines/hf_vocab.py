"""The tokenizer of a Hugging Face folder, through sentencepiece or tokenizers, without weights."""

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mixtral_rag.errors import MissingExtraError, ModelFileError, ModelNotFoundError
from mixtral_rag.weights.checkpoint import read_json
from mixtral_rag.weights.vocabulary import (
    BYTE,
    CONTROL,
    NORMAL,
    USER_DEFINED,
    Vocabulary,
    read_sentencepiece,
    read_vocabulary,
)


class FolderVocabulary:
    """A `Tokenizer` over the files beside full weights, loaded on first use.

    Args:
        path: a folder with tokenizer.model or tokenizer.json, or a SentencePiece file.
        extra: the extra of this package that brings the libraries, for the message when one is
            missing.

    Every attribute and method may raise:
        ModelNotFoundError: no such file, or no tokenizer in the folder.
        ModelFileError: a damaged tokenizer, or of a kind that cannot be read.
        MissingExtraError: sentencepiece or tokenizers is not installed.
    """

    def __init__(self, path: Path, *, extra: str = "transformers") -> None:
        self._path, self._extra = path, extra

    @functools.cached_property
    def _config(self) -> dict[str, Any]:
        return self._beside("config.json")

    @functools.cached_property
    def _vocabulary(self) -> Vocabulary:
        if not self._path.exists():
            raise ModelNotFoundError(f"no such file or folder: {self._path}")
        try:
            if not self._path.is_dir():
                return read_sentencepiece(self._path, convertible=False)
            return read_vocabulary(self._path, self._config, convertible=False)
        except MissingExtraError as error:
            raise MissingExtraError(error.package, self._extra) from error

    @functools.cached_property
    def _encoder(self) -> Callable[[str], list[int]]:
        """Text to IDs; user-defined tokens in the text are still found whole."""
        if not self._path.is_dir():
            return self._sentencepiece(self._path)
        if (self._path / "tokenizer.model").is_file():
            return self._sentencepiece(self._path / "tokenizer.model")
        tokenizer = self._fast
        return lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)

    def _sentencepiece(self, file: Path) -> Callable[[str], list[int]]:
        try:
            from sentencepiece import SentencePieceProcessor
        except ModuleNotFoundError as error:
            raise MissingExtraError("sentencepiece", self._extra) from error
        try:
            model = SentencePieceProcessor(model_file=str(file))
        except (RuntimeError, OSError) as error:
            raise ModelFileError(f"{file} is not a SentencePiece model") from error
        return lambda text: list(model.encode(text))

    @functools.cached_property
    def _fast(self) -> Any:
        try:
            from tokenizers import Tokenizer
        except ModuleNotFoundError as error:
            raise MissingExtraError("tokenizers", self._extra) from error
        file = self._path / "tokenizer.json"
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise ModelFileError(f"{file} cannot be read: {reason}; download it again") from error
        tokenizer.encode_special_tokens = True  # control tokens in text stay text
        return tokenizer

    @property
    def bos_id(self) -> int:
        """ID that starts a prompt, -1 when the vocabulary has none."""
        return self._vocabulary.special.get("bos", -1)

    @property
    def eos_id(self) -> int:
        """ID that ends an assistant turn."""
        return self._vocabulary.special.get("eos", -1)

    @functools.cached_property
    def adds_bos(self) -> bool:
        """Whether prompts for this vocabulary start with `bos_id`."""
        if self.bos_id < 0:
            return False
        has_model = not self._path.is_dir() or (self._path / "tokenizer.model").is_file()
        if has_model or "add_bos_token" in self._beside("tokenizer_config.json"):
            return self._vocabulary.add_bos
        return list(self._fast.encode("x").ids[:1]) == [self.bos_id]

    @property
    def adds_space_prefix(self) -> bool:
        """Whether encoding puts a space before the text (SentencePiece does unless told not to)."""
        return self._vocabulary.add_space_prefix

    @functools.cached_property
    def special_tokens(self) -> dict[str, int]:
        """Text of every control or user-defined token and its ID."""
        return {
            piece: i
            for i, (piece, kind) in enumerate(
                zip(self._vocabulary.pieces, self._vocabulary.types, strict=True)
            )
            if kind in (CONTROL, USER_DEFINED)
        }

    @functools.cached_property
    def end_ids(self) -> frozenset[int]:
        """IDs that end a generation: all that the model's settings name."""
        ids: set[Any] = {self.eos_id}
        for settings in (self._config, self._beside("generation_config.json")):
            stated = settings.get("eos_token_id")
            ids.update(stated if isinstance(stated, list) else [stated])
        return frozenset(i for i in ids if isinstance(i, int) and 0 <= i < len(self))

    def __len__(self) -> int:
        return len(self._vocabulary.pieces)

    @functools.cached_property
    def _user_defined(self) -> re.Pattern[str]:
        """Texts the libraries take for one token even when told not to parse control tokens."""
        names = [
            text
            for text, i in self.special_tokens.items()
            if self._vocabulary.types[i] == USER_DEFINED and len(text.strip()) > 1
        ]
        return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)")

    def encode(self, text: str) -> list[int]:
        """IDs of plain text: no BOS, and text never becomes a control token."""
        text = text.encode("utf-8", errors="replace").decode("utf-8")  # lone surrogates
        parts, start = [], 0
        for match in self._user_defined.finditer(text):
            middle = (match.start() + match.end()) // 2  # cut in two, it is not found whole
            parts.append(text[start:middle])
            start = middle
        parts.append(text[start:])
        return [i for part in parts if part for i in self._encoder(part)]

    @functools.cached_property
    def _bytes(self) -> list[bytes]:
        vocabulary = self._vocabulary
        characters = _byte_characters() if vocabulary.byte_level else None
        kinds = zip(vocabulary.pieces, vocabulary.types, strict=True)
        return [_piece_bytes(piece, kind, characters) for piece, kind in kinds]

    def piece(self, token_id: int) -> bytes:
        """Bytes of one token, possibly part of a UTF-8 character; empty for control tokens."""
        return self._bytes[token_id]

    def _beside(self, name: str) -> dict[str, Any]:
        file = self._path / name
        return read_json(file) if file.is_file() else {}


def _piece_bytes(piece: str, kind: int, characters: dict[str, int] | None) -> bytes:
    if kind == BYTE:
        return bytes([int(piece[3:5], 16)])
    if kind == USER_DEFINED:
        return piece.encode()
    if kind != NORMAL:
        return b""
    if characters is None:
        return piece.replace("▁", " ").encode()
    if all(c in characters for c in piece):
        return bytes(characters[c] for c in piece)
    return piece.encode()


def _byte_characters() -> dict[str, int]:
    """The byte that each character of a byte-level piece stands for.

    Printable characters of Latin-1 stand for themselves, the other bytes, in order, for those from
    U+0100 on.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in visible]
    return {chr(b): b for b in visible} | {chr(0x100 + n): b for n, b in enumerate(others)}
