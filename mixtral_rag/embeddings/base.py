"""What every embedder offers, and what they share."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from langchain_core.embeddings import Embeddings

Vectors = np.ndarray[tuple[int, int], np.dtype[np.float32]]


class Embedder(Protocol):
    """What ingest and retrieval need. Vectors have length 1, so a dot product is the cosine."""

    @property
    def fingerprint(self) -> str:
        """Names model and vector space; vectors of different fingerprints never mix."""
        ...

    @property
    def max_tokens(self) -> int:
        """Longest text, in tokens, that is seen whole."""
        ...

    @property
    def batch_tokens(self) -> int:
        """Tokens of texts that one call of `passages` needs to run at full speed."""
        ...

    @property
    def relevant(self) -> float:
        """Mark that the best passage must reach to have to do with a question (see `retrieve`)."""
        ...

    def count(self, text: str) -> int:
        """Tokens of `text` as a passage."""
        ...

    def passages(self, texts: Sequence[str]) -> Vectors:
        """One row of float32 for each text to be found, in their order, however many they are."""
        ...

    def query(self, text: str) -> Vectors:
        """One row of float32 for a question."""
        ...


class LangChainEmbeddings(Embeddings):
    """LangChain's interface over `passages` and `query`."""

    def passages(self, texts: Sequence[str]) -> Vectors:
        """One row for each text to be found."""
        raise NotImplementedError

    def query(self, text: str) -> Vectors:
        """One row for a question."""
        raise NotImplementedError

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Vectors of texts to be found."""
        return self.passages(texts).tolist() if texts else []

    def embed_query(self, text: str) -> list[float]:
        """The vector of a question."""
        vector: list[float] = self.query(text)[0].tolist()
        return vector


def bytes_safe(text: str) -> str:
    """NUL would end the text for a C library, and a lone surrogate has no UTF-8 form."""
    return text.replace("\x00", " ").encode("utf-8", errors="replace").decode("utf-8")


def unique(texts: Sequence[str]) -> tuple[list[str], list[int]]:
    """Each text once, and for every text its place among them: nothing is computed twice."""
    places: dict[str, int] = {}
    order = [places.setdefault(text, len(places)) for text in texts]
    return list(places), order


def unit(rows: Vectors) -> Vectors:
    """The rows made of length 1; zeros stay zeros."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled: Vectors = (rows / np.maximum(lengths, 1e-12)).astype(np.float32)
    return scaled
