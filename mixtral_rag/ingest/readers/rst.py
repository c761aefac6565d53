"""reStructuredText: the source text, cut at its titles. Nothing that it includes is loaded."""

import re
from collections.abc import Iterator
from pathlib import Path

from mixtral_rag.ingest.readers import Block, Parsed, ReadOptions
from mixtral_rag.ingest.readers.encoding import decode

_ADORNMENT = re.compile(r"^([!-/:-@\[-`{-~])\1{2,}$")


def read(path: Path, options: ReadOptions) -> Parsed:
    """Read a reStructuredText file; titles become sections, the text stays as written.

    A title is a line underlined, or under- and overlined, by one sign; levels are told from the
    order in which the styles appear.
    """
    source, encoding = decode(path)
    lines = source.split("\n")
    styles: list[tuple[str, bool]] = []
    blocks: list[Block] = []
    headings: list[tuple[int, str]] = []
    start = 0
    first = ""
    for at, name, style in _titles([line.rstrip() for line in lines]):
        if style not in styles:
            styles.append(style)
        _add(blocks, lines[start:at], headings)
        level = styles.index(style)
        headings = [h for h in headings if h[0] < level] + [(level, name)]
        start = at
        first = first or name
    _add(blocks, lines[start:], headings)
    return Parsed(first, blocks, encoding=encoding)


def _titles(lines: list[str]) -> Iterator[tuple[int, str, tuple[str, bool]]]:
    """First line, text and style (sign, whether overlined) of each title."""
    i = 0
    while i + 1 < len(lines):
        above = lines[i - 1] if i else ""
        line, below = lines[i], lines[i + 1]
        if (
            _ADORNMENT.match(line) and i + 2 < len(lines) and lines[i + 2] == line
            and below.strip() and not _ADORNMENT.match(below)
        ):  # fmt: skip
            yield i, below.strip(), (line[0], True)
            i += 3
        elif (
            _ADORNMENT.match(below) and line and not line[0].isspace() and not above
            and not _ADORNMENT.match(line) and len(below) >= min(len(line), 4)
        ):  # fmt: skip
            yield i, line, (below[0], False)
            i += 2
        else:
            i += 1


def _add(blocks: list[Block], lines: list[str], headings: list[tuple[int, str]]) -> None:
    if text := "\n".join(lines).strip("\n"):
        blocks.append(Block(text, None, tuple(name for _, name in headings)))
