"""Several processes that read documents, each fed by a thread of its own."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

from mixtral_rag.ingest.readers import Parsed, ReadOptions
from mixtral_rag.ingest.worker import Worker


class ReaderPool:
    """Reads documents side by side, in processes that start when there is work for them.

    Args:
        n_workers: how many at once.
        timeout: seconds one document may take, or a page of it where pages are read by OCR.
        memory: bytes of address space each reader may use.
        max_characters: of text one document may hold.
    """

    def __init__(
        self,
        n_workers: int = 2,
        *,
        timeout: float = 60.0,
        memory: int = 1 << 30,
        max_characters: int = 20_000_000,
    ) -> None:
        self._worker = partial(
            Worker, timeout=timeout, memory=memory, max_characters=max_characters
        )
        self._own = threading.local()
        self._workers: list[Worker] = []
        self._threads = ThreadPoolExecutor(
            n_workers, thread_name_prefix="reader", initializer=self._begin
        )

    def __enter__(self) -> "ReaderPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, path: Path, options: ReadOptions = ReadOptions()) -> "Future[Parsed]":  # noqa: B008
        """Have a document read; the future raises what `Worker.read` raises."""
        return self._threads.submit(self._read, path, options)

    def close(self) -> None:
        """End every process at once, whatever it is at; what was not read is cancelled."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in list(self._workers):
            worker.stop()
        self._threads.shutdown(wait=True)
        for worker in self._workers:
            worker.close()

    def _begin(self) -> None:
        self._own.worker = self._worker()
        self._workers.append(self._own.worker)

    def _read(self, path: Path, options: ReadOptions) -> Parsed:
        worker: Worker = self._own.worker
        return worker.read(path, options)
