"""Rerankers: models that read question and passage together (cross-encoders)."""

import functools
from collections.abc import Sequence
from typing import Any

from mixtral_rag.embeddings.base import bytes_safe
from mixtral_rag.embeddings.loading import load
from mixtral_rag.errors import MissingExtraError, SettingsError


class CrossEncoderReranker:
    """Any cross-encoder of sentence-transformers, by hub name or folder; loads on first use.

    Slower than search by a thousand times and better at telling apart what search found: on a CPU
    some 50 ms a passage of 400 tokens for a model of BERT's base size.

    Args:
        model: hub name or folder, such as `BAAI/bge-reranker-v2-m3`.
        device: `cpu`, `cuda`, `mps`; None lets the library choose.
        max_tokens: longest question and passage together; the rest is not read.
        batch_size: pairs at once.
    """

    def __init__(
        self,
        model: str,
        *,
        device: str | None = None,
        max_tokens: int = 512,
        batch_size: int = 8,
    ) -> None:
        if not model.strip():
            raise SettingsError("the reranker's name is empty; give a folder or a hub name")
        self.model, self.device = model, device
        self.max_tokens, self.batch_size = max_tokens, batch_size

    @functools.cached_property
    def _model(self) -> Any:
        try:
            from sentence_transformers import CrossEncoder
        except ModuleNotFoundError as error:
            raise MissingExtraError("sentence-transformers", "sentence-transformers") from error
        return load(
            CrossEncoder, self.model, device=self.device, max_length=self.max_tokens, num_labels=1
        )

    def scores(self, question: str, texts: Sequence[str]) -> list[float]:
        """How well each text answers the question, higher is better."""
        if not texts:
            return []
        pairs = [(bytes_safe(question), bytes_safe(text)) for text in texts]
        found = self._model.predict(
            pairs, batch_size=self.batch_size, show_progress_bar=False, convert_to_numpy=True
        )
        return [float(score) for score in found]
