"""What the command line prints: answers, passages, progress bars."""

import dataclasses
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixtral_rag.translation import listed, translated

if TYPE_CHECKING:
    from mixtral_rag.types import Passage

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def plain(text: str) -> str:
    """Text that cannot steer the terminal: no control characters but tab and line feed."""
    return _CONTROL.sub("", text)


def say(text: str, *, file: Any = None) -> None:
    """Print a message of ours, in the user's language; to standard output by default.

    For what is not ours, such as an answer or words of a document, there is `print`.
    """
    print(plain(translated(text)), file=file)


def warn(text: str) -> None:
    """Print a message of ours on standard error, with the name of the program before it."""
    print(f"mixtral-rag: {plain(translated(text))}", file=sys.stderr)


def print_json(value: Any) -> None:
    """Any of our values as JSON."""

    def simple(item: Any) -> Any:
        if isinstance(item, dict):
            return {str(k): simple(v) for k, v in item.items()}
        if isinstance(item, list | tuple):
            return [simple(v) for v in item]
        return str(item) if isinstance(item, Path) else item

    print(json.dumps(simple(value), ensure_ascii=False, indent=2))


def print_stream(pieces: Iterable[str]) -> None:
    """Text as it comes."""
    written = False
    for piece in pieces:
        text = plain(piece) if written else plain(piece).lstrip()
        written = written or bool(text)
        print(text, end="", flush=True)
    print()


def print_passages(passages: "Sequence[Passage]", *, as_json: bool) -> None:
    """Passages in full."""
    if as_json:
        print_json({"passages": [dataclasses.asdict(p) for p in passages]})
        return
    for number, passage in enumerate(passages, start=1):
        where = f", {passage.where}" if passage.where else ""
        scores = [f"cosine {passage.score:.3f}"]
        if passage.keyword_score:
            scores.append(f"words {passage.keyword_score:.1f}")
        if passage.rerank_score is not None:
            scores.append(f"reranker {passage.rerank_score:.3f}")
        print(plain(f"[{number}] {passage.name}{where} ({listed(scores)})"))
        print(plain(passage.text) + "\n")


@contextmanager
def byte_progress(what: str) -> Iterator[Any]:
    """A bar for work counted in bytes, with rate and time left, on standard error."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *columns,
        console=(console := Console(stderr=True)),
        transient=True,
        disable=not console.is_terminal,
    )
    task = bar.add_task(translated(what), total=None)
    shown = what

    def show(done: int, total: int, what: str = what) -> None:
        nonlocal shown
        if what != shown or not bar.tasks[0].completed:  # what was there already is no speed
            bar.reset(task, description=translated(what), completed=done, total=total)
        shown = what
        bar.update(task, completed=done, total=total)

    with bar:
        yield show


def size(n: float) -> str:
    """Bytes for a person: `24.62 GB`, `98.0 MB`."""
    return f"{n / 1e9:.2f} GB" if n >= 1e8 else f"{n / 1e6:.1f} MB"


def many(n: int, noun: str) -> str:
    """`1 page`, `2 pages`."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


@contextmanager
def task_progress(what: str) -> Iterator[Any]:
    """A bar with a changing description and the time left: call it with what, done and total."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=(console := Console(stderr=True)),
        transient=True,
        disable=not console.is_terminal,  # it would leave a blank line in a log
    )
    task = bar.add_task(translated(what), total=None)
    with bar:
        yield lambda what, done, total: bar.update(
            task, description=plain(translated(what)), completed=done, total=total
        )


def duration(seconds: float) -> str:
    """Seconds for a person: `0.8 s`, `42 s`, `3 min 5 s`, `2 h 10 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{int(seconds) // 60} min {int(seconds) % 60} s"
    return f"{int(seconds) // 3600} h {int(seconds) % 3600 // 60} min"
