"""CSV and TSV: rows under their header."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from mixtral_rag.ingest.readers import Parsed, ReadOptions, tables
from mixtral_rag.ingest.readers.encoding import decode

_LONGEST_CELL = 1 << 20  # characters
_SAMPLE = 20  # lines to tell the delimiter from


def read(path: Path, options: ReadOptions) -> Parsed:
    """Read a table in text, whatever of comma, semicolon, tab or bar parts its cells."""
    source, encoding = decode(path)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else _delimiter(source)
    try:
        blocks = list(tables.blocks(_rows(source, delimiter)))
    except csv.Error:  # a quote that opens and never ends is a character like others
        blocks = list(tables.blocks(_rows(source, delimiter, quotes=False)))
    return Parsed("", blocks, encoding=encoding)


def _rows(source: str, delimiter: str, *, quotes: bool = True) -> Iterator[list[str]]:
    csv.field_size_limit(_LONGEST_CELL if quotes else 1 << 30)
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
    for row in csv.reader(lines_of(source), delimiter=delimiter, quoting=quoting):
        yield [tables.cell(value) for value in row]


def lines_of(source: str) -> Iterator[str]:
    """The lines, one at a time, which takes no second copy of a long text."""
    start = 0
    while start < len(source):
        end = source.find("\n", start)
        end = len(source) if end < 0 else end + 1
        yield source[start:end]
        start = end


def _delimiter(source: str) -> str:
    """The sign that parts most lines into equally many cells."""
    lines = [line for line in source[:20_000].split("\n")[:_SAMPLE] if line.strip()]

    def score(sign: str) -> tuple[int, int]:
        counts = [_cells(line, sign) for line in lines]
        common = max(set(counts), key=counts.count, default=1)
        return (counts.count(common) if common > 1 else 0), common

    return max(",;\t|", key=score)


def _cells(line: str, sign: str) -> int:
    """Cells of a line; a sign in quotes parts nothing."""
    count, quoted = 1, False
    for character in line:
        quoted ^= character == '"'
        count += character == sign and not quoted
    return count
