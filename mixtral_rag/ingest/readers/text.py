"""Plain text: encodings, and numbered headings that stand on a line of their own."""

import codecs
from pathlib import Path

from mixtral_rag.errors import UnreadableError
from mixtral_rag.ingest.readers import Block, Parsed
from mixtral_rag.ingest.readers.layout import full_width, glue, heading_level, unwrap, width

_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"),
          (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip


def decode(path: Path) -> str:
    """Text of a file in UTF-8, UTF-16 with its mark, or GB18030.

    Raises:
        UnreadableError: it is none of these, or holds binary data.
    """
    data = path.read_bytes()
    encodings = [name for mark, name in _MARKS if data.startswith(mark)] or ["utf-8", "gb18030"]
    for encoding in encodings:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\x00" not in text and (encoding != "gb18030" or _is_chinese(text)):
            return text.replace("\r\n", "\n").replace("\r", "\n")
    raise UnreadableError(f"{path} is not text in UTF-8, UTF-16 or GB18030; convert it to UTF-8")


def _is_chinese(text: str) -> bool:
    """Whether text decoded as GB18030 is Chinese, and not another encoding mistaken for it.

    Nearly all bytes decode as something, but hardly ever as the 3,755 usual characters, which
    GB 2312 puts first.
    """
    strange = [c for c in text if not c.isascii()]
    usual = 0
    for c in strange:
        code = c.encode("gb2312", errors="ignore")
        usual += len(code) == 2 and (0xB0 <= code[0] <= 0xD7 or code[0] in (0xA1, 0xA3))
    return usual >= 0.75 * len(strange)


def read(path: Path) -> Parsed:
    """Read a text file, with its numbered headings as sections."""
    lines = decode(path).replace("\u00a0", " ").split("\n")
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
    return Parsed(title if len(title) <= 80 else "", blocks)


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
