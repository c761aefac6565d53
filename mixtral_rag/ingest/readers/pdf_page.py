"""One page of a PDF: its lines, and what became of it."""

import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

State = Literal["text", "empty", "garbled", "needs_ocr"]

_BAD_SHARE = 0.2  # of the characters that show; bullets and icons of a good page stay far below
_UNMAPPED_SHARE = 0.5  # of a sample; formulas of a good page stay far below
_SAMPLED = 256  # characters asked for their map
_LITTLE = 16  # characters, such as a page number under a scan
_INK, _PICTURE_INK = 0.001, 0.03  # share of a page: anything at all, more than a few letters
_SMALL = 400  # pixels, longer edge of a page drawn to see whether anything stands on it


def content(page: Any) -> tuple[list[str], State]:
    """The lines of an open page of pypdfium2, and how it ends; a garbled page has none."""
    with open_text(page) as text_page:
        raw = text_page.get_text_bounded()
        if is_garbled(raw) or _unmapped(text_page) >= _UNMAPPED_SHARE:
            return [], "garbled"
    # PDFium marks a hyphen at the end of a line by U+FFFE or U+0002, and may give NUL.
    text = raw.replace("\ufffe\r\n", "").replace("\x02\r\n", "").replace("\x00", "")
    lines = [line for line in text.replace("\r\n", "\n").split("\n") if line.strip()]
    shown = sum(len("".join(line.split())) for line in lines)
    if shown >= _LITTLE:
        return lines, "text"
    ink = _ink(page)
    if ink > (_PICTURE_INK if shown else _INK):
        return lines, "needs_ocr"
    return lines, "text" if shown else "empty"


@contextmanager
def open_text(page: Any) -> Iterator[Any]:
    """The text of a page, closed afterwards."""
    text_page = page.get_textpage()
    try:
        yield text_page
    finally:
        text_page.close()


def is_garbled(text: str) -> bool:
    """Whether too many of the characters that show are none: private, unassigned, control, U+FFFD.

    They come from fonts without a map from their glyphs to characters.
    """
    # Marks of hyphens are PDFium's own.
    shown = "".join(text.replace("\ufffe", "").replace("\x02\r\n", "\r\n").split())
    bad = sum(n for c, n in _counts(shown) if c == "\ufffd" or unicodedata.category(c) in _BAD)
    return bad > _BAD_SHARE * len(shown)


_BAD = frozenset({"Cc", "Cn", "Co", "Cs"})


def _counts(text: str) -> Iterator[tuple[str, int]]:
    from collections import Counter

    yield from Counter(text).items()


def _unmapped(text_page: Any) -> float:
    """Share of a sample of the characters whose font says nothing of which characters they are.

    PDFium then gives the numbers of the glyphs as if they were characters.
    """
    import pypdfium2.raw as pdfium

    n = text_page.count_chars()
    drawn = [
        i
        for i in range(0, n, max(1, n // _SAMPLED))
        if not pdfium.FPDFText_IsGenerated(text_page, i)
    ]
    missing = sum(pdfium.FPDFText_HasUnicodeMapError(text_page, i) == 1 for i in drawn)
    return missing / len(drawn) if len(drawn) >= _LITTLE else 0.0


def _ink(page: Any) -> float:
    """Share of the page that differs from its background."""
    _, _, gray = picture(page, dpi=72, longest=_SMALL)
    counts = sorted(((gray.count(level), level) for level in set(gray)), reverse=True)
    paper = counts[0][1]
    return sum(n for n, level in counts if abs(level - paper) > 48) / len(gray)


def picture(page: Any, *, dpi: int, longest: int) -> tuple[int, int, bytes]:
    """Width, height and grey levels, a byte a pixel, of a page drawn on white.

    Args:
        page: an open page of pypdfium2.
        dpi: dots per inch, less where the page is large.
        longest: pixels of the longer edge at most.
    """
    points = max(page.get_size())
    bitmap = page.render(scale=min(dpi / 72, longest / max(points, 1.0)), grayscale=True)
    try:
        width, height, stride = bitmap.width, bitmap.height, bitmap.stride
        rows = bytes(bitmap.buffer)
    finally:
        bitmap.close()
    if stride != width:
        rows = b"".join(rows[y * stride : y * stride + width] for y in range(height))
    return width, height, rows


def ranges(numbers: Sequence[int]) -> str:
    """Page numbers for a person: `2, 5-7`."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(f"{a}-{b}" if b > a else str(a) for a, b in parts)
