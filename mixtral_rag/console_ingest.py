"""What the command line prints of an ingest and of a store."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixtral_rag.console import duration, many, plain, say, warn
from mixtral_rag.translation import listed, translated

if TYPE_CHECKING:
    from mixtral_rag.ingest.report import IngestReport, Progress
    from mixtral_rag.store.ledger import Document

_STATES = {
    "empty": "empty",
    "garbled": "garbled (their font does not say which characters it shows)",
    "needs_ocr": "pictures (--ocr reads them)",
    "ocr": "read by OCR",
}
_LISTED = 12


@contextmanager
def progress() -> Iterator[Any]:
    """A bar with files, pages, rate and time left, on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    bar = Bar(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[told]}", markup=False),
        console=(console := Console(stderr=True)),
        transient=True,
        disable=not console.is_terminal,
    )
    task = bar.add_task(translated("Reading"), total=1.0, told="")

    def show(step: "Progress") -> None:
        name = plain(step.path.name)[:32] if step.path else translated("Reading")
        bar.update(task, description=name, completed=step.done, told=_told(step))

    with bar:
        yield show


def _told(step: "Progress") -> str:
    parts = [f"{step.n_files_done:,}/{step.n_files:,} files"]
    if step.n_pages:
        parts.append(many(step.n_pages, "page"))
    if step.n_passages and step.seconds > 1:
        parts.append(f"{step.n_passages / step.seconds:.0f} passages/s")
    if step.seconds_left is not None:
        parts.append(f"{duration(step.seconds_left)} left")
    return listed(parts)


def print_report(report: "IngestReport", store: Path) -> None:
    """What an ingest did, problems last and on standard error."""
    counts = {
        "added": len(report.added),
        "updated": len(report.updated),
        "moved": len(report.moved),
        "unchanged": len(report.unchanged),
        "failed": len(report.failed),
        "failed before and not changed": len(report.still_failed),
    }
    said = ", ".join(f"{n:,} {word}" for word, n in counts.items() if n)
    say(f"{many(sum(counts.values()), 'document')}: {said}.")
    if report.removed:
        say(f"{many(len(report.removed), 'document')} removed, whose files are gone.")
    if report.n_passages:
        reused = report.n_passages - report.n_embedded
        done = [many(report.n_pages, "page")] if report.n_pages else []
        done.append(many(report.n_passages, "passage"))
        done += [f"{reused:,} of them embedded before"] if reused > 0 else []
        say(f"{', '.join(done)}, in {duration(report.seconds)}.")
    if report.passed_over:
        kinds = sorted(report.passed_over.items(), key=lambda kind: -kind[1])
        names = ", ".join(f"{n:,} {_suffix(suffix)}" for suffix, n in kinds[:_LISTED])
        say(f"Passed over, of formats that are not read: {names}")
    _print_problems(report)
    if report.added or report.updated or report.moved:
        say(f"Store: {store}")


def _suffix(name: str) -> str:
    from mixtral_rag.ingest.discover import NO_SUFFIX

    return translated("without a suffix") if name == NO_SUFFIX else plain(name)


def _print_problems(report: "IngestReport") -> None:
    for path, pages_of in report.lost_pages.items():
        for state, numbers in pages_of.items():
            warn(f"{path.name}: {_pages(numbers)} not in the store: {_STATES[state]}")
    for path, problems in report.problems.items():
        for problem in problems[:_LISTED]:
            warn(f"{path.name}: {problem}")
        if len(problems) > _LISTED:
            warn(f"{path.name}: and {len(problems) - _LISTED:,} more; see: mixtral-rag status -v")
    for error in [*report.failed.values(), *report.still_failed.values()]:
        warn(error)
    if report.still_failed:
        warn("to try again what failed before: --retry")


def _pages(numbers: Sequence[int]) -> str:
    """`page 3`, `pages 2, 5-9`."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][-1] + 1:
            runs[-1][1:] = [n]
        else:
            runs.append([n])
    listed = ", ".join("-".join(map(str, run)) for run in runs[:_LISTED])
    more = ", ..." if len(runs) > _LISTED else ""
    return f"{'page' if len(numbers) == 1 else 'pages'} {listed}{more}"


def print_status(documents: "list[Document]", store: Path, *, verbose: bool) -> None:
    """A table of the documents in a store; `verbose` adds what was not read of each."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in ("Document", "Pages", "Passages", "State"):
        table.add_column(
            translated(column), justify="right" if column in ("Pages", "Passages") else "left"
        )
    for document in documents:
        pages = "" if document.n_pages is None else str(document.n_pages)
        state = translated(state_of(document))
        cells = (str(document.path), pages, str(document.n_passages), state)
        table.add_row(*(Text(plain(cell)) for cell in cells))
        for line in _details(document.pages, document) if verbose else ():
            table.add_row(Text(f"  {plain(translated(line))}", style="dim"))
    Console().print(table)
    n_passages = sum(d.n_passages for d in documents)
    say(f"\n{many(len(documents), 'document')}, {many(n_passages, 'passage')} in {store}")


def _details(pages: Mapping[str, Sequence[int]], document: "Document") -> Iterator[str]:
    if document.encoding and document.encoding != "utf-8":
        yield f"encoding: {document.encoding}"
    for state, numbers in pages.items():
        yield f"{_pages(numbers)}: {_STATES.get(state, state)}"
    yield from document.problems


def state_of(document: "Document") -> str:
    """What became of an ingested file since."""
    if not document.is_file:
        return "ok"
    try:
        stat = document.path.stat()
    except OSError:
        return "file is gone"
    if document.failure:
        return document.failure.reason
    same = (document.size, document.mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    if not same:
        return "file has changed; ingest again"
    lost = sum(len(document.pages.get(state, ())) for state in ("garbled", "needs_ocr"))
    return "ok" if not lost else f"ok but for {many(lost, 'page')}"
