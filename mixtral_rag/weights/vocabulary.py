"""The vocabulary of a Hugging Face folder, in the terms of a GGUF file.

From `tokenizer.model`, or from `tokenizer.json` where only that is there. Special tokens, added
tokens and the chat template come from the files beside it.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixtral_rag.errors import MissingExtraError, ModelFileError, ModelNotFoundError
from mixtral_rag.weights.checkpoint import read_json

# Token types of llama.cpp (enum llama_token_type).
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_BYTE_TOKEN = re.compile(r"^<0x[0-9A-F]{2}>$")
_LOWEST = -1000.0  # score of tokens that text is never split into


@dataclass(slots=True)
class Vocabulary:
    """Pieces with their merge scores and types; `special` holds the IDs of bos, eos, unk, pad."""

    pieces: list[str]
    scores: list[float]
    types: list[int]
    special: dict[str, int] = field(default_factory=dict)
    add_bos: bool = True
    add_eos: bool = False
    add_space_prefix: bool = True
    chat_template: str | None = None
    byte_level: bool = False
    """Whether each character of a piece stands for a byte, as in GPT-2's vocabulary."""


def read_vocabulary(
    folder: Path, config: dict[str, Any], *, convertible: bool = True
) -> Vocabulary:
    """The vocabulary in `folder`, filled up to the `vocab_size` of its config.

    Args:
        folder: where tokenizer.model or tokenizer.json is.
        config: the content of config.json.
        convertible: refuse what is not SentencePiece BPE, as Mixtral's is.

    Raises:
        ModelNotFoundError: no tokenizer in the folder.
        ModelFileError: not a SentencePiece BPE vocabulary, damaged, or larger than the model's.
        MissingExtraError: sentencepiece is not installed.
    """
    try:
        return _read(folder, config, convertible)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ModelFileError(
            f"the tokenizer in {folder} is damaged ({type(error).__name__}: {error}); "
            "download it again"
        ) from error


def _read(folder: Path, config: dict[str, Any], convertible: bool) -> Vocabulary:
    if (folder / "tokenizer.model").is_file():
        vocabulary = read_sentencepiece(folder / "tokenizer.model", convertible=convertible)
    elif (folder / "tokenizer.json").is_file():
        vocabulary = _from_json(folder / "tokenizer.json", convertible)
    else:
        raise ModelNotFoundError(f"{folder} has neither tokenizer.model nor tokenizer.json")
    settings = _optional(folder / "tokenizer_config.json")
    size = config.get("vocab_size") or len(vocabulary.pieces)
    _add_tokens(vocabulary, folder, settings, size)
    if len(vocabulary.pieces) > size:
        raise ModelFileError(
            f"the tokenizer in {folder} has {len(vocabulary.pieces):,} tokens and the model "
            f"{size:,}"
        )
    for i in range(len(vocabulary.pieces), size):
        _append(vocabulary, f"[PAD{i}]", UNUSED)
    _set_special(vocabulary, settings, config)
    vocabulary.add_bos = settings.get("add_bos_token", True) is not False
    vocabulary.add_eos = settings.get("add_eos_token", False) is True
    vocabulary.chat_template = read_chat_template(folder)
    return vocabulary


def read_sentencepiece(path: Path, *, convertible: bool = True) -> Vocabulary:
    """The vocabulary in a `tokenizer.model`; arguments and errors as of `read_vocabulary`."""
    try:
        from sentencepiece import SentencePieceProcessor
    except ModuleNotFoundError as error:
        raise MissingExtraError("sentencepiece", "weights") from error
    try:
        model = SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise ModelFileError(f"{path} is not a SentencePiece model") from error
    ids = range(model.GetPieceSize())
    kinds = ((model.IsUnknown, UNKNOWN), (model.IsControl, CONTROL), (model.IsByte, BYTE),
             (model.IsUnused, UNUSED))  # fmt: skip
    types = [next((kind for test, kind in kinds if test(i)), NORMAL) for i in ids]
    scores = [float(model.GetScore(i)) for i in ids]
    if convertible and any(score != int(score) for score in scores):  # log-probabilities
        raise ModelFileError(f"{path} is a unigram model; only BPE, as Mixtral's, can be converted")
    special = {
        "bos": model.bos_id(),
        "eos": model.eos_id(),
        "unk": model.unk_id(),
        "pad": model.pad_id(),
    }
    special = {name: i for name, i in special.items() if i >= 0}
    prefixed = model.encode("x", out_type=str)[0].startswith("▁")
    pieces = [model.IdToPiece(i) for i in ids]
    return Vocabulary(pieces, scores, types, special, add_space_prefix=prefixed)


def _from_json(path: Path, convertible: bool) -> Vocabulary:
    """SentencePiece made into a tokenizer.json; a piece's score is when it is first merged."""
    content = read_json(path)
    model = content.get("model") or {}
    if convertible and (model.get("type") != "BPE" or not model.get("byte_fallback")):
        raise ModelFileError(
            f"{path} is not made from SentencePiece BPE (Llama 3 and others are not), and there is "
            "no tokenizer.model; this vocabulary cannot be converted"
        )
    if model.get("type") != "BPE":
        raise ModelFileError(f"{path} is a {model.get('type')} vocabulary; only BPE can be read")
    by_id = {i: piece for piece, i in model["vocab"].items()}
    for token in content.get("added_tokens", []):
        by_id.setdefault(token["id"], token["content"])
    if sorted(by_id) != list(range(len(by_id))):
        raise ModelFileError(f"{path} has gaps between its token IDs; download it again")
    order: dict[str, int] = {}
    for merge in model["merges"]:
        order.setdefault("".join(merge.split(" ") if isinstance(merge, str) else merge), len(order))
    pieces = [by_id[i] for i in range(len(by_id))]
    types = [BYTE if _BYTE_TOKEN.match(piece) else NORMAL for piece in pieces]
    scores = [-float(order.get(piece, len(order))) for piece in pieces]
    vocabulary = Vocabulary(pieces, scores, types, add_space_prefix=_prepends(content))
    vocabulary.byte_level = '"ByteLevel"' in json.dumps(content.get("decoder"))
    for token in content.get("added_tokens", []):
        _mark(vocabulary, token["id"], token["content"], token.get("special", False))
    unknown = model.get("unk_token")
    if unknown in model["vocab"]:
        vocabulary.special["unk"] = model["vocab"][unknown]
        vocabulary.types[vocabulary.special["unk"]] = UNKNOWN
    return vocabulary


def _prepends(content: dict[str, Any]) -> bool:
    """Whether a space goes before the text: a Prepend normaliser, or Metaspace told so."""
    normalizer = content.get("normalizer") or {}
    steps = normalizer.get("normalizers") or [normalizer]
    before = content.get("pre_tokenizer") or {}
    return any(s.get("type") == "Prepend" for s in steps) or (
        before.get("type") == "Metaspace" and before.get("prepend_scheme", "always") != "never"
    )


def _add_tokens(vocabulary: Vocabulary, folder: Path, settings: dict[str, Any], size: int) -> None:
    """Tokens a fine-tune added or redefined."""
    added = {i: (text, False) for text, i in _optional(folder / "added_tokens.json").items()}
    for key, token in (settings.get("added_tokens_decoder") or {}).items():
        added[int(key)] = (token["content"], bool(token.get("special")))
    for i, (text, is_special) in sorted(added.items()):
        if not 0 <= i < size:
            raise ModelFileError(
                f"the tokenizer in {folder} has {text!r} at {i:,} and the model {size:,} tokens"
            )
        while len(vocabulary.pieces) < i:
            _append(vocabulary, f"[PAD{len(vocabulary.pieces)}]", UNUSED)
        if i == len(vocabulary.pieces):
            _append(vocabulary, text, UNUSED)
        _mark(vocabulary, i, text, is_special)


def _mark(vocabulary: Vocabulary, i: int, text: str, is_special: bool) -> None:
    if vocabulary.pieces[i] == text and vocabulary.types[i] in (UNKNOWN, CONTROL):
        return
    vocabulary.pieces[i] = text
    vocabulary.scores[i] = _LOWEST
    vocabulary.types[i] = CONTROL if is_special else USER_DEFINED


def _append(vocabulary: Vocabulary, text: str, kind: int) -> None:
    vocabulary.pieces.append(text)
    vocabulary.scores.append(_LOWEST)
    vocabulary.types.append(kind)


def _set_special(vocabulary: Vocabulary, settings: dict[str, Any], config: dict[str, Any]) -> None:
    """The IDs of special tokens: as the tokenizer's settings name them, else as the config does."""
    ids = {text: i for i, text in reversed(list(enumerate(vocabulary.pieces)))}
    for name in ("bos", "eos", "unk", "pad"):
        token = settings.get(f"{name}_token")
        text = token.get("content") if isinstance(token, dict) else token
        stated = config.get(f"{name}_token_id")
        stated = stated[0] if isinstance(stated, list) and stated else stated
        if isinstance(text, str) and text in ids:
            vocabulary.special[name] = ids[text]
        elif name not in vocabulary.special and isinstance(stated, int) and stated >= 0:
            vocabulary.special[name] = stated
    for name, i in vocabulary.special.items():
        if i >= len(vocabulary.pieces):
            raise ModelFileError(f"the {name} token has the ID {i:,}, beyond the vocabulary")


def read_chat_template(folder: Path) -> str | None:
    """As transformers looks for it: a file of its own first, then the tokenizer's settings."""
    alone = folder / "chat_template.jinja"
    if alone.is_file():
        return alone.read_text("utf-8")
    template = _optional(folder / "chat_template.json").get("chat_template")
    template = template or _optional(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
