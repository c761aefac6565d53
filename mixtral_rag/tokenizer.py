"""Text to token IDs and back: the one protocol that prompts, planner and engines share.

Implementations: `engines.llama_vocab.LlamaVocabulary` (the vocabulary inside a GGUF file) and
`engines.hf_vocab.FolderVocabulary` (the tokenizer of a Hugging Face folder).
"""

from collections.abc import Sequence
from typing import Protocol


class Tokenizer(Protocol):
    """What rendering, counting and decoding need of a vocabulary."""

    @property
    def bos_id(self) -> int:
        """ID that starts a prompt, -1 when the vocabulary has none."""
        ...

    @property
    def eos_id(self) -> int:
        """ID that ends an assistant turn."""
        ...

    @property
    def adds_bos(self) -> bool:
        """Whether prompts for this vocabulary start with `bos_id`."""
        ...

    @property
    def adds_space_prefix(self) -> bool:
        """Whether encoding puts a space before the text, as SentencePiece does for Mixtral."""
        ...

    @property
    def special_tokens(self) -> dict[str, int]:
        """Text of every control or user-defined token and its ID."""
        ...

    @property
    def end_ids(self) -> frozenset[int]:
        """IDs that end a generation."""
        ...

    def __len__(self) -> int:
        """How many tokens there are."""
        ...

    def encode(self, text: str) -> list[int]:
        """IDs of plain text: no BOS, and text never becomes a control token."""
        ...

    def piece(self, token_id: int) -> bytes:
        """Bytes of one token, possibly part of a UTF-8 character; empty for control tokens."""
        ...


def decode(tokenizer: Tokenizer, token_ids: Sequence[int]) -> str:
    """Text of `token_ids`; bytes that are not UTF-8 become U+FFFD."""
    data = b"".join(tokenizer.piece(i) for i in token_ids)
    if tokenizer.adds_space_prefix:
        data = data.removeprefix(b" ")
    return data.decode("utf-8", errors="replace")
