"""Tables as text a model can read: a row is a line `cell | cell`, its header never far away."""

import datetime as dt
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from mixtral_rag.ingest.heartbeat import alive
from mixtral_rag.ingest.readers import Block

_BLOCK = 700  # columns of text a block takes, about 300 tokens, so that it is one passage
_LONG_HEAD = 240  # columns; a longer header is given cell by cell
_MOST_CAPTIONS = 3


def cell(value: Any) -> str:
    """A value of a sheet as a person would write it, on one line."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.12g}"
    if isinstance(value, dt.datetime):
        return value.isoformat(" ", "minutes").removesuffix(" 00:00")
    return " ".join(str(value).split())


def width(text: str) -> int:
    """About the columns that text takes, Chinese characters counting two; quickly."""
    return len(text) if text.isascii() else (len(text) + len(text.encode("utf-8", "replace"))) // 2


def line(cells: Sequence[str]) -> str:
    """A row: its cells but for the empty ones at its end."""
    last = max((i for i, c in enumerate(cells) if c), default=-1)
    return " | ".join(cells[: last + 1])


def text(rows: Iterable[Sequence[str]]) -> str:
    """A table that stands in running text; a long one repeats its first row on the way."""
    lines = [row for row in map(line, rows) if row]
    if not lines:
        return ""
    out, size = [lines[0]], 0
    for row in lines[1:]:
        if size > _BLOCK and width(lines[0]) <= _LONG_HEAD:
            out.append(lines[0])
            size = 0
        out.append(row)
        size += width(row)
    return "\n".join(out)


def blocks(rows: Iterable[Sequence[str]], section: tuple[str, ...] = ()) -> Iterator[Block]:
    """Blocks of a sheet, each with the header row and a section `rows 2-21`.

    Lines of one cell above the header are its caption and go along with it. Where the header is
    long, each value is written behind the name of its column instead. Rows are counted from 1, as
    the sheet counts them, and empty ones are left out.
    """
    numbered = ((n, row) for n, row in enumerate(rows, 1) if any(row))
    head: list[str] = []
    names: Sequence[str] = ()
    first: tuple[int, Sequence[str]] | None = None
    for n, row in numbered:
        if sum(1 for c in row if c) == 1 and len(head) < _MOST_CAPTIONS:
            head.append(line(row))
            continue
        if _is_header(row):
            names = row
        else:
            first = (n, row)
        break
    if not names and first is None:  # nothing but single cells
        first, head = (1, head), []
        yield from pack([(1, "\n".join(first[1]))], "rows", section=section)
        yield from pack(((n, line(row)) for n, row in numbered), "rows", section=section)
        return
    yield from _body(head, names, first, numbered, section)


def _body(
    head: list[str],
    names: Sequence[str],
    first: tuple[int, Sequence[str]] | None,
    numbered: Iterator[tuple[int, Sequence[str]]],
    section: tuple[str, ...],
) -> Iterator[Block]:
    by_name = width(line(names)) > _LONG_HEAD
    if names and not by_name:
        head = [*head, line(names)]

    def rows() -> Iterator[tuple[int, str]]:
        if first is not None:
            yield first[0], line(first[1])
        for n, row in numbered:
            yield n, pairs(zip(names, row, strict=False)) if by_name else line(row)

    empty = True
    for block in pack(rows(), "rows", head="\n".join(head), section=section):
        empty = False
        yield block
    if empty:  # a header alone
        yield Block("\n".join([*head, *([line(names)] if by_name else [])]), None, section)


def pairs(values: Iterable[tuple[str, str]]) -> str:
    """`name: value; name: value`, but for the empty ones."""
    return "; ".join(f"{name}: {value}" if name else value for name, value in values if value)


def pack(
    records: Iterable[tuple[int, str]],
    noun: str,
    *,
    head: str = "",
    section: tuple[str, ...] = (),
) -> Iterator[Block]:
    """Blocks of numbered records, as many in each as a passage takes.

    Each has its own section, such as `rows 2-21`, so that none is cut or merged later on.

    Args:
        records: number and text of each.
        noun: what a record is called.
        head: text to repeat at the top of every block.
        section: the headings above.
    """
    part: list[str] = []
    size = start = end = 0
    head_size = min(width(head), _BLOCK // 2)
    for count, (n, record) in enumerate(records):
        if count % 10_000 == 0:
            alive()
        taken = width(record)
        if part and head_size + size + taken > _BLOCK:
            yield _block(head, part, section, noun, start, end)
            part, size = [], 0
        if not part:
            start = n
        part.append(record)
        size += taken
        end = n
    if part:
        yield _block(head, part, section, noun, start, end)


def _block(
    head: str, part: list[str], section: tuple[str, ...], noun: str, start: int, end: int
) -> Block:
    where = f"{noun} {start}-{end}" if end > start else f"{noun.removesuffix('s')} {start}"
    return Block("\n".join([head, *part] if head else part), None, (*section, where))


def _is_header(row: Sequence[str]) -> bool:
    filled = [c for c in row if c]
    return len(filled) > 1 and not any(_is_number(c) for c in filled)


def _is_number(text: str) -> bool:
    return text.replace(",", "").replace(".", "", 1).lstrip("+-").rstrip("%").isdecimal()
