"""Plain text, with numbered headings that stand on a line of their own."""

from pathlib import Path

from mixtral_rag.ingest.readers import Block, Parsed, ReadOptions
from mixtral_rag.ingest.readers.encoding import decode
from mixtral_rag.ingest.readers.layout import full_width, glue, heading_level, unwrap, width


def read(path: Path, options: ReadOptions) -> Parsed:
    """Read a text file, with its numbered headings as sections."""
    source, encoding = decode(path)
    lines = source.replace("\u00a0", " ").split("\n")
    full = full_width(line.strip() for line in lines)
    title = next((line.strip() for line in lines if line.strip()), "")
    blocks: list[Block] = []
    headings: list[tuple[int, str]] = []
    start = 0
    for i in range(len(lines)):
        heading = _heading(lines, i, full)
        if heading is None:
            continue
        _add(blocks, lines[start:i], headings, full)
        headings = [h for h in headings if h[0] < heading[0]] + [heading]
        start = i
    _add(blocks, lines[start:], headings, full)
    return Parsed(title if len(title) <= 80 else "", blocks, encoding=encoding)


def _heading(lines: list[str], i: int, full: int) -> tuple[int, str] | None:
    """Level and text of a heading at line `i`: not indented, between empty lines.

    It may run on over one more line, which a page of `full` columns forced.
    """
    line = lines[i]
    level = heading_level(line)
    if level is None or line[:1].isspace() or (i and lines[i - 1].strip()):
        return None
    following = [row.strip() for row in (*lines[i + 1 : i + 3], "", "")]
    if not following[0]:
        return level, line.strip()
    if not following[1] and width(line) >= full * 0.72:
        return level, "".join([line.strip(), *glue(line.strip(), following[0])])
    return None


def _add(blocks: list[Block], lines: list[str], headings: list[tuple[int, str]], full: int) -> None:
    # Text files are indented for the eye; list marks tell the structure well enough.
    if text := unwrap((line.strip() for line in lines), full).strip():
        blocks.append(Block(text, None, tuple(name for _, name in headings)))
