"""The vocabulary inside a GGUF file, through llama.cpp, without loading the weights."""

import ctypes
import functools
import re
import threading
from typing import Any

from mixtral_rag.engines import llama_library
from mixtral_rag.weights.gguf import GGUFHeader


class LlamaVocabulary:
    """A `Tokenizer` over the vocabulary of one GGUF file, loaded on first use."""

    def __init__(self, header: GGUFHeader) -> None:
        self._header = header
        self._lock = threading.Lock()
        self._model: Any = None

    @property
    def _vocab(self) -> Any:
        with self._lock:
            if self._model is None:
                self._model = llama_library.load_model(self._header, vocab_only=True)
            return self._model.vocab

    @functools.cached_property
    def bos_id(self) -> int:
        """ID that starts a prompt, -1 when the vocabulary has none."""
        return int(llama_library.load().llama_vocab_bos(self._vocab))

    @functools.cached_property
    def eos_id(self) -> int:
        """ID that ends an assistant turn."""
        return int(llama_library.load().llama_vocab_eos(self._vocab))

    @functools.cached_property
    def adds_bos(self) -> bool:
        """Whether prompts for this vocabulary start with `bos_id`."""
        return bool(llama_library.load().llama_vocab_get_add_bos(self._vocab))

    @property
    def adds_space_prefix(self) -> bool:
        """Whether encoding puts a space before the text (SentencePiece does unless told not to)."""
        stated = self._header.metadata.get("tokenizer.ggml.add_space_prefix")
        if isinstance(stated, bool):
            return stated
        return self._header.text("tokenizer.ggml.model") == "llama"

    @functools.cached_property
    def special_tokens(self) -> dict[str, int]:
        """Text of every control or user-defined token and its ID."""
        lib, vocab = llama_library.load(), self._vocab
        wanted = lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_USER_DEFINED
        ids = (i for i in range(len(self)) if lib.llama_vocab_get_attr(vocab, i) & wanted)
        return {lib.llama_vocab_get_text(vocab, i).decode("utf-8", "replace"): i for i in ids}

    @functools.cached_property
    def end_ids(self) -> frozenset[int]:
        """IDs that end a generation."""
        lib, vocab = llama_library.load(), self._vocab
        return frozenset(i for i in range(len(self)) if lib.llama_vocab_is_eog(vocab, i))

    def __len__(self) -> int:
        return int(llama_library.load().llama_vocab_n_tokens(self._vocab))

    @functools.cached_property
    def _user_defined(self) -> re.Pattern[str]:
        """Texts llama.cpp takes for one token even when told not to parse control tokens."""
        lib, vocab = llama_library.load(), self._vocab
        names = [
            text
            for text, i in self.special_tokens.items()
            if lib.llama_vocab_get_attr(vocab, i) & lib.LLAMA_TOKEN_ATTR_USER_DEFINED
            and len(text.strip()) > 1
        ]
        return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)")

    def encode(self, text: str) -> list[int]:
        """IDs of plain text: no BOS, and text never becomes a control token."""
        parts, start = [], 0
        for match in self._user_defined.finditer(text):
            middle = (match.start() + match.end()) // 2  # cut in two, it is not found whole
            parts.append(text[start:middle])
            start = middle
        parts.append(text[start:])
        return [i for part in parts for i in self._encode(part)]

    def _encode(self, text: str) -> list[int]:
        lib = llama_library.load()
        data = text.encode("utf-8", errors="replace")
        if not data:
            return []
        room = len(data) + 8
        ids = (lib.llama_token * room)()
        count = lib.llama_tokenize(self._vocab, data, len(data), ids, room, False, False)
        if count < 0:  # more tokens than bytes
            room = -count
            ids = (lib.llama_token * room)()
            count = lib.llama_tokenize(self._vocab, data, len(data), ids, room, False, False)
        return list(ids[:count])

    def piece(self, token_id: int) -> bytes:
        """Bytes of one token, possibly part of a UTF-8 character; empty for control tokens."""
        lib = llama_library.load()
        room = 64
        buffer = ctypes.create_string_buffer(room)
        count = lib.llama_token_to_piece(self._vocab, token_id, buffer, room, 0, False)
        if count < 0:
            room = -count
            buffer = ctypes.create_string_buffer(room)
            count = lib.llama_token_to_piece(self._vocab, token_id, buffer, room, 0, False)
        return buffer.raw[:count]
