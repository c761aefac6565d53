"""Files read ahead of the embedder: hashed, parsed in worker processes, split into windows."""

import hashlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from mixtral_rag.errors import DocumentError, UnreadableError
from mixtral_rag.ingest.changes import Candidate, Recipe
from mixtral_rag.ingest.pool import ReaderPool
from mixtral_rag.ingest.readers import Parsed, ReadOptions
from mixtral_rag.ingest.split import Window, split
from mixtral_rag.store.ledger import Document, Failure

_AHEAD_FILES, _AHEAD_BYTES = 128, 32 << 20  # read and not yet stored
_MOMENT = 0.05  # seconds


@dataclass(slots=True)
class Job:
    """What became of one file: a failure, content that is known, or a parsed document.

    Args:
        document: what the ledger is to note.
        windows: its passages.
        texts: for each, what is to be embedded.
        failure: why it could not be read.
        is_same: its content is what the ledger has, or had failed before.
        copy_of: a document in the ledger with the same content.
        size: bytes of the file.
    """

    path: Path
    size: int = 0
    mtime_ns: int = 0
    document: Document | None = None
    windows: list[Window] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    failure: Failure | None = None
    is_same: bool = False
    copy_of: Document | None = None


class Reading:
    """A job for each candidate, in order; within a `with` block.

    A thread reads ahead, as long as what was read and not yet `stored` stays small.

    Args:
        todo: the files.
        pool: reads them.
        recipe: how they are read.
        count: tokens of a text for the embedder.
        originals: documents in the ledger by the hash of their content, which copies need not be
            read for.
        retry_failed: whether to try again what failed before.
    """

    def __init__(
        self,
        todo: Sequence[Candidate],
        pool: ReaderPool,
        recipe: Recipe,
        count: Callable[[str], int],
        originals: Mapping[str, Document],
        *,
        retry_failed: bool,
    ) -> None:
        self._todo, self._pool, self._recipe, self._count = todo, pool, recipe, count
        self._originals, self._retry_failed = originals, retry_failed
        self._jobs: queue.SimpleQueue[Job | BaseException | None] = queue.SimpleQueue()
        self._room = threading.Condition()
        self._n_ahead = self._bytes_ahead = 0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="reading", daemon=True)

    def __enter__(self) -> "Reading":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._room:
            self._closed = True
            self._room.notify_all()
        self._pool.close()  # which ends what the thread may be waiting for
        self._thread.join()

    def __iter__(self) -> Iterator[Job | None]:
        """A job each, or None when none came for a moment, which is a time for other work."""
        while True:
            try:
                job = self._jobs.get(timeout=_MOMENT)
            except queue.Empty:
                yield None
                continue
            if job is None:
                return
            if isinstance(job, BaseException):
                raise job
            yield job

    def stored(self, job: Job) -> None:
        """Say that a job is done with, so that more can be read."""
        with self._room:
            self._n_ahead -= 1
            self._bytes_ahead -= job.size
            self._room.notify_all()

    def _take_room(self, size: int) -> bool:
        with self._room:
            while not self._closed and self._n_ahead and (
                self._n_ahead >= _AHEAD_FILES or self._bytes_ahead + size > _AHEAD_BYTES
            ):  # fmt: skip
                self._room.wait()
            self._n_ahead += 1
            self._bytes_ahead += size
            return not self._closed

    def _run(self) -> None:
        under_way: deque[tuple[Job, str, Future[Parsed] | None]] = deque()
        try:
            for candidate in self._todo:
                while under_way and self._must_wait(candidate.size):
                    self._finish(*under_way.popleft())
                if not self._take_room(candidate.size):
                    return
                under_way.append(self._begin(candidate))
                while under_way and (under_way[0][2] is None or under_way[0][2].done()):
                    self._finish(*under_way.popleft())
            while under_way:
                self._finish(*under_way.popleft())
            self._jobs.put(None)
        except BaseException as error:  # noqa: BLE001 - raised again where the jobs are read
            if not self._closed:
                self._jobs.put(error)

    def _must_wait(self, size: int) -> bool:
        with self._room:
            return self._n_ahead >= _AHEAD_FILES or self._bytes_ahead + size > _AHEAD_BYTES

    def _begin(self, candidate: Candidate) -> tuple[Job, str, Future[Parsed] | None]:
        path, known = candidate.path, candidate.known
        job = Job(path, candidate.size, candidate.mtime_ns)
        try:
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            job.failure = Failure(f"cannot read {path}: {error.strerror}")
            return job, "", None
        failure = known.failure if known else None
        if known and known.sha256 == sha256 and self._recipe.is_of(known):
            job.is_same = True
        elif (
            failure
            and failure.sha256 == sha256
            and not self._retry_failed
            and self._recipe.failed_with(failure)
        ):
            job.failure, job.is_same = self._failure(job, failure.reason, sha256), True
        elif (original := self._originals.get(sha256)) and original.path.suffix == path.suffix:
            job.copy_of = original
        else:
            return job, sha256, self._pool.submit(path, ReadOptions(ocr=self._recipe.ocr))
        return job, sha256, None

    def _failure(self, job: Job, reason: str, sha256: str) -> Failure:
        return Failure(reason, sha256, str(self._recipe), job.size, job.mtime_ns)

    def _finish(self, job: Job, sha256: str, future: "Future[Parsed] | None") -> None:
        if future is not None:
            try:
                self._fill(job, sha256, future.result())
            except DocumentError as error:
                job.failure = self._failure(job, str(error), sha256)
        self._jobs.put(job)

    def _fill(self, job: Job, sha256: str, parsed: Parsed) -> None:
        windows = split(parsed.blocks, self._count, max_tokens=self._recipe.window_tokens)
        if not windows:
            raise UnreadableError(f"{job.path} holds no text")
        job.windows = windows
        job.texts = [with_headings(parsed.title, w) for w in windows]
        job.document = Document(
            job.path,
            title=parsed.title,
            sha256=sha256,
            recipe=str(self._recipe),
            size=job.size,
            mtime_ns=job.mtime_ns,
            n_pages=parsed.n_pages,
            pages={str(k): v for k, v in parsed.pages.items()},
            problems=tuple(parsed.problems),
            encoding=parsed.encoding,
        )


def with_headings(title: str, window: Window) -> str:
    """The text of a window as it is embedded: under its headings."""
    headings = [h for h in (title, *window.section) if h and not window.text.startswith(h)]
    return "\n".join([" > ".join(dict.fromkeys(headings)), window.text]).strip()
