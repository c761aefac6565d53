"""Several workers that read documents at once."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from mixtral_rag.ingest.readers import Parsed, ReadOptions
from mixtral_rag.ingest.worker import Worker


class ReaderPool:
    """Reads documents in processes of their own, `n_workers` at once."""

    def __init__(self, n_workers: int = 2) -> None:
        self._threads = ThreadPoolExecutor(n_workers, thread_name_prefix="reader")
        self._idle = [Worker() for _ in range(n_workers)]
        self._all = list(self._idle)

    def __enter__(self) -> "ReaderPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, path: Path, options: ReadOptions) -> "Future[Parsed]":
        """Read a document; the result raises what the reader raised."""
        return self._threads.submit(self._read, path, options)

    def _read(self, path: Path, options: ReadOptions) -> Parsed:
        worker = self._idle.pop()
        try:
            return worker.read(path, options)
        finally:
            self._idle.append(worker)

    def close(self) -> None:
        """End all workers, also those at work."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._all:
            worker.close()
