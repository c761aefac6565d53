"""Files to the store: what changed is parsed, split, embedded and put in place of the old."""

import hashlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISREG

import numpy as np

from mixtral_rag.embeddings import Embedder, Vectors
from mixtral_rag.errors import DocumentError, UnreadableError
from mixtral_rag.ingest.discover import discover
from mixtral_rag.ingest.readers import Parsed
from mixtral_rag.ingest.split import Window, split
from mixtral_rag.ingest.worker import Worker
from mixtral_rag.store.documents import DocumentStore
from mixtral_rag.store.ledger import Document

_WINDOW_TOKENS = 400  # of the embedder's 512: headings are embedded along with the text
_EMBED_BATCH = 8


@dataclass(slots=True)
class IngestReport:
    """What an ingest did, file by file."""

    added: list[Path] = field(default_factory=list)
    updated: list[Path] = field(default_factory=list)
    unchanged: list[Path] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)
    empty_pages: dict[Path, tuple[int, ...]] = field(default_factory=dict)
    n_passages: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an ingest is: files of all files, and passages embedded of this file's."""

    path: Path
    n_files_done: int
    n_files: int
    n_embedded: int = 0
    n_passages: int = 0


def ingest(
    paths: Iterable[Path],
    store: DocumentStore,
    *,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> IngestReport:
    """Ingest files and folders; a file that fails is reported and the rest goes on.

    A file whose content is already in the store costs a look at its size and time.

    Raises:
        NoDocumentsError: a path does not exist, or no document was found; nothing was changed.
        LockedError: another process is writing to the store.
    """
    files = discover(paths)
    report, started = IngestReport(), time.monotonic()
    with store.writing(), Worker() as worker:
        known = {d.path: d for d in store.ledger.documents()}
        for number, path in enumerate(files):
            on_progress(Progress(path, number, len(files)))

            def embedded(done: int, of: int, *, _n: int = number, _path: Path = path) -> None:
                on_progress(Progress(_path, _n, len(files), done, of))

            try:
                _ingest_file(path, known.get(path), store, worker, report, embedded)
            except DocumentError as error:
                report.failed[path] = str(error)
                store.ledger.fail(path, str(error))
        if files:
            on_progress(Progress(files[-1], len(files), len(files)))
    report.seconds = time.monotonic() - started
    return report


def _ingest_file(
    path: Path,
    known: Document | None,
    store: DocumentStore,
    worker: Worker,
    report: IngestReport,
    on_embedded: Callable[[int, int], None],
) -> None:
    try:
        stat = path.stat()
        if not S_ISREG(stat.st_mode):
            raise UnreadableError(f"{path} is not a regular file")
        same_stat = known is not None and (known.size, known.mtime_ns) == (
            stat.st_size,
            stat.st_mtime_ns,
        )
        if known is not None and same_stat and known.error is None:
            report.unchanged.append(path)
            return
        sha256 = _sha256(path)
    except OSError as error:
        raise UnreadableError(f"cannot read {path}: {error.strerror}") from error
    if known is not None and known.sha256 == sha256:
        store.ledger.touch(path, stat.st_size, stat.st_mtime_ns)
        report.unchanged.append(path)
        return
    parsed = worker.read(path)
    windows = split(parsed.blocks, store.embedder.count, max_tokens=_window_tokens(store.embedder))
    vectors = _embed(parsed, windows, store.embedder, on_embedded)
    document = Document(
        path, parsed.title, sha256, stat.st_size, stat.st_mtime_ns, parsed.n_pages,
        tuple(parsed.pages.get("needs_ocr", ())), None, None, len(windows),
    )  # fmt: skip
    store.replace(document, windows, vectors)
    (report.added if known is None or known.n_passages == 0 else report.updated).append(path)
    report.n_passages += len(windows)
    if "needs_ocr" in parsed.pages:
        report.empty_pages[path] = tuple(parsed.pages["needs_ocr"])


def _window_tokens(embedder: Embedder) -> int:
    return min(_WINDOW_TOKENS, embedder.max_tokens * 3 // 4)


def _embed(
    parsed: Parsed,
    windows: list[Window],
    embedder: Embedder,
    on_embedded: Callable[[int, int], None],
) -> Vectors:
    """Vectors of the windows, each embedded under its headings."""
    texts = [_with_headings(parsed, w) for w in windows]
    rows: list[Vectors] = []
    on_embedded(0, len(texts))
    for start in range(0, len(texts), _EMBED_BATCH):
        rows.append(embedder.passages(texts[start : start + _EMBED_BATCH]))
        on_embedded(min(start + _EMBED_BATCH, len(texts)), len(texts))
    return np.concatenate(rows)


def _with_headings(parsed: Parsed, window: Window) -> str:
    headings = [h for h in (parsed.title, *window.section) if h and not window.text.startswith(h)]
    return "\n".join([" > ".join(dict.fromkeys(headings)), window.text]).strip()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
