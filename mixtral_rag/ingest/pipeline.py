"""Files to the store: what changed is parsed, split, embedded and put in place of the old.

Reading runs ahead in other processes while texts are embedded here, those of several documents
together. Vectors are stored as soon as they are made and a document becomes visible when all of
its passages have theirs, in one step; so an ingest may be stopped or killed at any moment, and the
next one goes on.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from mixtral_rag.embeddings import Embedder
from mixtral_rag.errors import MixtralRagError
from mixtral_rag.ingest.changes import Candidate, Recipe, candidates, gone
from mixtral_rag.ingest.discover import discover
from mixtral_rag.ingest.given import Given
from mixtral_rag.ingest.pool import ReaderPool
from mixtral_rag.ingest.reading import Job, Reading
from mixtral_rag.ingest.report import IngestReport, Progress
from mixtral_rag.machine import usable_cpus
from mixtral_rag.store.documents import DocumentStore, Step
from mixtral_rag.store.embedded import text_hash
from mixtral_rag.store.ledger import Document

_WINDOW_TOKENS = 400  # of the embedder's 512: headings are embedded along with the text
_BATCH = 64  # windows embedded together, for an embedder that does not say
_COMMIT_SECONDS = 0.5  # documents that are done wait so long for others


def ingest(
    paths: Iterable[Path],
    store: DocumentStore,
    *,
    ocr: str | None = None,
    prune: bool = False,
    retry_failed: bool = False,
    n_workers: int | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> IngestReport:
    """Ingest files and folders; a file that fails is reported and the rest goes on.

    A file whose size and time are in the store costs one look at these. One that failed is tried
    again when it has changed.

    Args:
        paths: files, and folders to be searched for documents.
        store: where they go.
        ocr: languages for tesseract, such as `chi_sim+eng`, to read pages that are pictures.
        prune: remove documents under `paths` whose files are gone.
        retry_failed: try again also what failed and has not changed.
        n_workers: processes that parse; None takes the usable cores, at most 4.
        on_progress: told how far it is.

    Raises:
        NoDocumentsError: a path does not exist, or no document was found; nothing was changed.
        SettingsError: OCR is asked for and cannot be had.
        LockedError: another process is writing to the store.
        StoreError: the store cannot be written, such as on a full disk; what was stored is kept.
        MixtralRagError: the system refuses something else; what was stored is kept.
    """
    paths = list(paths)
    found = discover(paths)
    files = found.files
    _check_ocr(ocr)
    started = time.monotonic()
    with _errors_of_the_system(), store.writing():
        known = {d.path: d for d in store.ledger.documents()}
        recipe = Recipe(_window_tokens(store.embedder), ocr)
        report = IngestReport(failed=found.unlisted, passed_over=dict(found.passed_over))
        todo = candidates(files, known, recipe, report, retry_failed=retry_failed)
        if todo:
            pool = ReaderPool(n_workers or min(4, usable_cpus()))
            originals = _originals(known.values(), todo, recipe)
            reading = Reading(
                todo, pool, recipe, store.embedder.count, originals, retry_failed=retry_failed
            )
            stage = _Stage(store, report, known, _Meter(files, todo, on_progress, started))
            with reading:
                stage.run(reading)
        if prune:
            report.removed = gone(paths, known, [*files, *report.moved.values()])
        _tidy(store, report)
        here = set(files)
        report.note_losses(d for d in store.ledger.documents() if d.path in here)
    report.seconds = time.monotonic() - started
    return report


def ingest_documents(
    documents: Iterable[Any],
    store: DocumentStore,
    *,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> IngestReport:
    """Ingest what a program hands over: LangChain `Document`s, as a loader's `lazy_load` gives.

    Neighbours with the same `source` in their metadata make one document under that name, and take
    the place of what was there under it. Those without one are named by their text.

    Raises:
        LockedError: another process is writing to the store.
        StoreError: the store cannot be written; what was stored is kept.
    """
    started, report = time.monotonic(), IngestReport()
    with store.writing():
        known = {d.path: d for d in store.ledger.documents()}
        recipe = Recipe(_window_tokens(store.embedder))
        stage = _Stage(store, report, known, _Meter([], [], on_progress, started))
        stage.run(Given(documents, recipe, store.embedder.count, known))
        _tidy(store, report)
    report.seconds = time.monotonic() - started
    return report


@contextmanager
def _errors_of_the_system() -> Iterator[None]:
    """What no step expects, such as no memory for another process, is told in our way."""
    try:
        yield
    except OSError as error:
        raise MixtralRagError(
            f"the ingest was stopped: {error}; what was stored is kept, and the next run goes on"
        ) from error


def _check_ocr(ocr: str | None) -> None:
    if ocr is not None:
        from mixtral_rag.ingest.readers.ocr import check

        check(ocr)


def _window_tokens(embedder: Embedder) -> int:
    return min(_WINDOW_TOKENS, embedder.max_tokens * 3 // 4)


def _originals(
    known: Iterable[Document], todo: Sequence[Candidate], recipe: Recipe
) -> dict[str, Document]:
    """Documents by their content, which another file may turn out to have."""
    changing = {c.path for c in todo}
    return {
        d.sha256: d
        for d in known
        if d.n_passages and d.is_file and recipe.is_of(d) and d.path not in changing
    }


def _tidy(store: DocumentStore, report: IngestReport) -> None:
    with store.step() as step:
        if report.removed:
            step.remove(report.removed)
        step.sweep()  # in any case: an ingest that was cut off may have left vectors


class _Stage:
    """Embeds what was read and stores it."""

    def __init__(
        self,
        store: DocumentStore,
        report: IngestReport,
        known: dict[Path, Document],
        meter: "_Meter",
    ) -> None:
        self._store, self._report, self._known, self._meter = store, report, known, meter
        self._waiting: deque[tuple[Job, list[bytes]]] = deque()
        self._missing: dict[bytes, str] = {}  # texts to embed
        self._moved: dict[Path, Path] = {}  # where documents are whose files have another name now
        self._committed = time.monotonic()
        self._batch = getattr(store.embedder, "batch", _BATCH)

    def run(self, reading: Reading | Given) -> None:
        self._reading = reading
        for job in reading:
            if job is not None:
                self._take(job)
            if len(self._missing) >= self._batch or (job is None and self._missing):
                self._embed()
            elif self._waiting and self._is_late():
                self._commit([], None)
        while self._missing:
            self._embed()
        self._commit([], None)

    def _is_late(self) -> bool:
        return not self._missing and time.monotonic() - self._committed > _COMMIT_SECONDS

    def _take(self, job: Job) -> None:
        hashes = [text_hash(text) for text in job.texts]
        wanted = dict(zip(hashes, job.texts, strict=True))
        for known in self._store.embedded.known(list(wanted)):
            del wanted[known]
        self._missing |= wanted
        job.texts = []
        self._waiting.append((job, hashes))

    def _embed(self) -> None:
        hashes = list(self._missing)[: self._batch]
        texts = [self._missing.pop(h) for h in hashes]
        started = time.monotonic()
        vectors = self._store.embedder.passages(texts)
        self._report.embed_seconds += time.monotonic() - started
        self._report.n_embedded += len(texts)
        self._commit(hashes, vectors)

    def _commit(self, hashes: list[bytes], vectors: Any) -> None:
        """Store new vectors, and the documents that have all of theirs."""
        done: list[Job] = []
        with self._store.step() as step:
            if hashes:
                step.embed(hashes, vectors)
            while self._waiting and not any(h in self._missing for h in self._waiting[0][1]):
                job, its_hashes = self._waiting.popleft()
                self._put(step, job, its_hashes)
                done.append(job)
        self._committed = time.monotonic()
        for job in done:
            self._reading.stored(job)
            self._count(job)
        self._meter.show(self._waiting, self._missing)

    def _put(self, step: Step, job: Job, hashes: list[bytes]) -> None:
        if job.failure is not None:
            step.fail(job.path, job.failure)
        elif job.is_same:
            step.touch(job.path, job.size, job.mtime_ns)
        elif job.copy_of is not None:
            original = job.copy_of
            source = self._moved.get(original.path, original.path)
            job.windows, hashes = self._store.ledger.windows(source)
            job.document = replace(
                original, path=job.path, size=job.size, mtime_ns=job.mtime_ns, failure=None
            )
            step.put(job.document, job.windows, hashes)
            if source == original.path and not original.path.exists():
                step.remove([original.path])
                self._moved[original.path] = job.path
                self._report.moved[job.path] = original.path
        elif job.document is not None:
            step.put(job.document, job.windows, hashes)

    def _count(self, job: Job) -> None:
        report, known = self._report, self._known.get(job.path)
        if job.failure is not None:
            failed = report.still_failed if job.is_same else report.failed
            failed[job.path] = job.failure.reason
        elif job.is_same:
            report.unchanged.append(job.path)
        elif job.path not in report.moved:
            (report.updated if known and known.n_passages else report.added).append(job.path)
            report.n_passages += len(job.windows)
            report.n_pages += (job.document.n_pages or 0) if job.document else 0
        self._meter.finish(job)


class _Meter:
    """How far an ingest is, in bytes of the files that must be read."""

    def __init__(
        self,
        files: Sequence[Path],
        todo: Sequence[Candidate],
        tell: Callable[[Progress], None],
        started: float,
    ) -> None:
        self._tell, self._started = tell, started
        self._n_files, self._n_done = len(files), len(files) - len(todo)
        self._bytes = sum(c.size for c in todo)
        self._bytes_done = self._n_pages = self._n_passages = 0

    def finish(self, job: Job) -> None:
        self._n_done += 1
        self._bytes_done += job.size
        self._n_passages += len(job.windows)
        self._n_pages += (job.document.n_pages or 0) if job.document else 0

    def show(self, waiting: "deque[tuple[Job, list[bytes]]]", missing: dict[bytes, str]) -> None:
        done, path, part = float(self._bytes_done), None, 0
        if waiting:
            job, hashes = waiting[0]
            path = job.path
            part = sum(h not in missing for h in hashes)
            done += job.size * part / max(1, len(hashes))
        self._tell(
            Progress(
                path,
                self._n_done,
                self._n_files,
                self._n_pages,
                self._n_passages + part,
                done / self._bytes if self._bytes else 1.0,
                time.monotonic() - self._started,
            )
        )
