"""Lines as they stand on a page, made into paragraphs."""

import re
import textwrap
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

_BULLET = re.compile(
    r"^\s*(?:[•●○▪■◦–—*+$#>-](?=\s)|\(?\d{1,3}[.)、]|[（(]?[一二三四五六七八九十]+[)）、])"
)
_ENDS = tuple("。！？；：.!?;:…”』」）)")
# `1.2. Title`, `第 1 章 标题`, `Chapter 3 Title`
_HEADING = re.compile(
    r"^(?:第\s*[\d一二三四五六七八九十百]+\s*(?P<part>[章节篇部])"
    r"|(?P<word>Chapter|Part|Appendix)\s+\w{1,4}\b|(?P<number>\d{1,2}(?:\.\d{1,3}){0,4})\.?(?=\s))"
    r"\s*\S.{0,80}$"
)


def width(text: str) -> int:
    """Columns a line takes, Chinese characters counting two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def full_width(lines: Iterable[str]) -> int:
    """Columns of a line that fills a page, told from the longer lines of running text."""
    widths = sorted(w for line in lines if (w := width(line)) > 40 and ". ." not in line)
    return widths[int(len(widths) * 0.85)] if widths else 0


def unwrap(lines: Iterable[str], full: int) -> str:
    """Join lines that a page of `full` columns broke inside a sentence.

    Short lines, list items and headings stay lines of their own.
    """
    rows = textwrap.dedent("\n".join(line.rstrip() for line in lines)).split("\n")
    out: list[list[str]] = []  # lines, each as the parts it is joined from
    open_line = False  # whether the last line in `out` may go on
    for row in rows:
        text = row.strip()
        if not text:
            out.append([""])
            open_line = False
            continue
        if open_line and not _BULLET.match(row) and not _HEADING.match(text):
            out[-1] += glue(out[-1][-1], text)
        else:
            out.append([row])
        open_line = full > 0 and width(row) >= full * 0.72 and not text.endswith(_ENDS)
    joined = "\n".join("".join(parts) for parts in out)
    return re.sub(r"\n{3,}", "\n\n", joined).strip("\n")


def glue(left: str, right: str) -> list[str]:
    """What to put after `left`, the end of a line, to go on with `right`.

    A space goes between unless both ends are Chinese.
    """
    if not left or not right:
        return [right]
    if left.endswith("-") and left[-2:-1].isalpha() and right[0].islower():
        return [right]  # keep the hyphen: it may belong to the word
    wide = [width(c) == 2 for c in (left[-1], right[0])]
    words = [c.isalnum() for c in (left[-1], right[0])]
    glued = all(wide) or (any(wide) and not all(words))
    return [right] if glued else [" ", right]


def heading_level(line: str) -> int | None:
    """Depth of a numbered heading line, 1 for a chapter; None when it is none."""
    match = _HEADING.match(line.strip())
    if not match or line.strip().endswith(("。", "；", "，", ",", ";", "...")):
        return None
    number = match.group("number")
    if number is None:
        return 2 if match.group("part") == "节" else 1
    return 1 + number.count(".")


class RunningLines:
    """Headers and footers: a first or last line that most pages share but for its numbers.

    A bare number is one only where it rises with the page; a column of figures is text. At most
    one line at each end of a page is taken away.
    """

    def __init__(self, pages: Sequence[Sequence[str]]) -> None:
        shapes: Counter[str] = Counter()
        offsets: Counter[int] = Counter()
        for number, lines in enumerate(pages, start=1):
            edges = {row.strip() for row in (*lines[:1], *lines[-1:])}
            shapes.update({_shape(edge) for edge in edges})
            offsets.update({int(edge) - number for edge in edges if _is_number(edge)})
        filled = sum(1 for lines in pages if lines)
        least = filled * 0.4 if filled >= 4 else filled + 1
        self._shapes = {shape for shape, n in shapes.items() if n > least and shape != "#"}
        self._offsets = {offset for offset, n in offsets.items() if n > least}

    def without(self, lines: Sequence[str], number: int) -> list[str]:
        """The lines of page `number` but for its header and footer."""
        body = list(lines)
        if body and self._is_running(body[0].strip(), number):
            del body[0]
        if body and self._is_running(body[-1].strip(), number):
            del body[-1]
        return body

    def _is_running(self, line: str, number: int) -> bool:
        if _is_number(line):
            return int(line) - number in self._offsets
        return _shape(line) in self._shapes


def _is_number(line: str) -> bool:
    return line.isascii() and line.isdigit() and len(line) < 7


def _shape(line: str) -> str:
    return re.sub(r"\d+", "#", line)
