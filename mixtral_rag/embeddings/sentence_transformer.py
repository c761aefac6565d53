"""Any sentence-transformers model, its batches filled by tokens."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import numpy as np

from mixtral_rag.embeddings.base import LangChainEmbeddings, Vectors, bytes_safe, unique, unit
from mixtral_rag.embeddings.loading import load
from mixtral_rag.errors import MissingExtraError, SettingsError
from mixtral_rag.machine import cpu_features

Dtype = Literal["auto", "float32", "bfloat16", "float16"]

# Tokens of a batch, padding included. A processor's caches hold the layers' values for these; a
# GPU wants more to do at once.
_CPU_BATCH, _GPU_BATCH = 1024, 32_768


class SentenceTransformerEmbeddings(LangChainEmbeddings):
    """Any sentence-transformers model, by hub name or local folder; loads on first use.

    Args:
        model: hub name or folder, such as `intfloat/multilingual-e5-small`.
        device: `cpu`, `cuda`, `mps`; None lets the library choose.
        dtype: what to compute in: `float32`, `bfloat16` or `float16`. `auto` is bfloat16 on a
            processor made for it (AVX-512 BF16), about 2.5 times as fast, and otherwise as saved.
        relevant: cosine below which a passage has nothing to do with a question.
    """

    def __init__(
        self,
        model: str,
        *,
        device: str | None = None,
        dtype: Dtype = "auto",
        relevant: float = 0.3,
    ) -> None:
        if dtype not in get_args(Dtype):
            raise SettingsError(f"dtype is {dtype!r}; choose from {', '.join(get_args(Dtype))}")
        self.model, self.device, self.dtype = model, device, dtype
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
        model = load(SentenceTransformer, self.model, device=self.device)
        return _converted(model, self.dtype)

    @property
    def max_tokens(self) -> int:
        """Longest text, in tokens, that is seen whole."""
        return int(self._model.max_seq_length or 512)

    @property
    def batch_tokens(self) -> int:
        """Tokens of texts that one call of `passages` needs to run at full speed."""
        return 4 * self._batch

    @property
    def _batch(self) -> int:
        return _CPU_BATCH if self._model.device.type == "cpu" else _GPU_BATCH

    def count(self, text: str) -> int:
        """Tokens of `text` as a passage."""
        return self._counts([bytes_safe(text)])[0]

    def passages(self, texts: Sequence[str]) -> Vectors:
        """One row of float32 for each text to be found, in their order."""
        if not texts:
            return self.query("")[:0]
        prefix = "passage: " if self._is_e5 else ""
        once, order = unique([prefix + bytes_safe(text) for text in texts])
        counts = [min(n, self.max_tokens) for n in self._counts(once)]
        batches = list(_batches(counts, self._batch))
        encode = self._model.encode_document
        found = np.concatenate([self._encode(encode, [once[i] for i in b]) for b in batches])
        rows = np.empty_like(found)
        rows[np.concatenate(batches)] = found
        chosen: Vectors = rows[order]
        return chosen

    def query(self, text: str) -> Vectors:
        """One row of float32 for a question."""
        text = bytes_safe(text)
        return self._encode(self._model.encode_query, [f"query: {text}" if self._is_e5 else text])

    def _counts(self, texts: list[str]) -> list[int]:
        return [len(ids) for ids in self._model.tokenizer(
            texts, truncation=False, verbose=False, return_attention_mask=False
        )["input_ids"]]  # fmt: skip

    def _encode(self, encode: Any, texts: list[str]) -> Vectors:
        rows = encode(texts, batch_size=len(texts), convert_to_numpy=True, show_progress_bar=False)
        return unit(rows.astype(np.float32))  # here, not in bfloat16


def _batches(counts: Sequence[int], size: int) -> Iterator[list[int]]:
    """Places of texts of like length together, no more than `size` tokens with padding."""
    batch: list[int] = []
    for i in sorted(range(len(counts)), key=counts.__getitem__, reverse=True):
        if batch and counts[batch[0]] * (len(batch) + 1) > size:  # the first is the longest
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _converted(model: Any, dtype: Dtype) -> Any:
    import torch

    if dtype == "auto":
        if model.device.type != "cpu" or not _has_bfloat16(torch):
            return model
        dtype = "bfloat16"
    return model.to(getattr(torch, dtype))


def _has_bfloat16(torch: Any) -> bool:
    """Whether torch multiplies in bfloat16 on this processor; emulated, it would be slower."""
    return (
        "AVX-512 BF16" in cpu_features()
        and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
        and torch.backends.mkldnn.is_available()
    )
