"""A page of a PDF as a picture, and where words stand on it; a process of its own.

Run as `python -m mixtral_rag.ingest.page_image`: a JSON line with path, page and words comes on
standard input; on standard output goes a JSON line with places and size, and then the PNG. A page
that hangs or crashes PDFium takes only this process with it.
"""

import contextlib
import json
import os
import struct
import subprocess
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixtral_rag.errors import UnreadableError

_SECONDS, _MEMORY = 20.0, 1 << 30
_WIDTH, _LONGEST = 1100, 2600  # pixels
_PART = 12  # characters that are looked for by themselves where the whole is not found
_LONGEST_WORDS = 2000


@dataclass(frozen=True, slots=True)
class PageImage:
    """A page as a picture.

    Args:
        png: the picture.
        marks: left, top, width and height of each line of the words, as shares of the page.
        n_pages: of the document.
    """

    png: bytes
    marks: tuple[tuple[float, float, float, float], ...]
    n_pages: int


def page_image(path: Path, number: int, words: str = "") -> PageImage:
    """Draw a page of a PDF.

    Args:
        path: the file.
        number: of the page, from 1.
        words: to be marked; they may stand in several lines.

    Raises:
        UnreadableError: no such page, damaged, or drawing it takes too long.
    """
    asked = {"path": str(path), "page": number, "words": words[:_LONGEST_WORDS]}
    command = [sys.executable, "-P", "-m", "mixtral_rag.ingest.page_image"]
    try:
        done = subprocess.run(  # noqa: S603 - this very module
            command, input=json.dumps(asked).encode(), capture_output=True, timeout=_SECONDS,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise UnreadableError(f"{path.name}: page {number} takes too long to draw") from None
    head, _, png = done.stdout.partition(b"\n")
    if done.returncode or not head:
        raise UnreadableError(f"{path.name}: page {number} cannot be drawn")
    told = json.loads(head)
    if "error" in told:
        raise UnreadableError(f"{path.name}: {told['error']}")
    return PageImage(png, tuple(tuple(mark) for mark in told["marks"]), told["n_pages"])


def main() -> None:
    """Answer the one request on standard input."""
    _limit()
    asked = json.loads(sys.stdin.readline())
    told, png = _draw(Path(asked["path"]), asked["page"], asked["words"])
    sys.stdout.buffer.write(json.dumps(told).encode() + b"\n" + png)


def _limit() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):  # where the system has such limits
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        seconds = int(_SECONDS)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        os.nice(5)


def _draw(path: Path, number: int, words: str) -> tuple[dict[str, Any], bytes]:
    import pypdfium2

    try:
        with contextlib.closing(pypdfium2.PdfDocument(path)) as document:
            if not 1 <= number <= len(document):
                return {"error": f"there is no page {number}; it has {len(document)}"}, b""
            page = document[number - 1]
            width, height = page.get_size()
            scale = min(_WIDTH / width, _LONGEST / max(width, height))
            bitmap = page.render(scale=scale, rev_byteorder=True)
            png = _png(bitmap)
            marks = _marks(page, words, width, height) if words.strip() else []
            return {"marks": marks, "n_pages": len(document)}, png
    except (pypdfium2.PdfiumError, OSError) as error:
        return {"error": f"page {number} cannot be drawn: {error}"}, b""


def _png(bitmap: Any) -> bytes:
    """A bitmap of PDFium as PNG (RFC 2083), RGB without transparency."""
    import numpy as np

    data = np.ctypeslib.as_array(bitmap.buffer).reshape(bitmap.height, bitmap.stride)
    channels = bitmap.n_channels
    pixels = data[:, : bitmap.width * channels].reshape(bitmap.height, bitmap.width, channels)
    pixels = pixels[:, :, :3] if channels >= 3 else np.repeat(pixels, 3, axis=2)
    rows = np.zeros((bitmap.height, 1 + bitmap.width * 3), np.uint8)  # each begins with its filter
    rows[:, 1:] = pixels.reshape(bitmap.height, -1)
    header = struct.pack(">IIBBBBB", bitmap.width, bitmap.height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 6)), (b"IEND", b""))
    chunks = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _marks(page: Any, words: str, width: float, height: float) -> list[list[float]]:
    """Where words stand: one box a line, as shares of the page from its upper left corner."""
    from mixtral_rag.ingest.readers.pdf_page import open_text

    with open_text(page) as text_page:
        text = text_page.get_text_range()
        shown = [i for i, c in enumerate(text) if not c.isspace() and c.isprintable()]
        found = _found("".join(text[i] for i in shown), "".join(words.split()))
        boxes = [text_page.get_charbox(shown[i]) for start, end in found for i in range(start, end)]
    lines: list[list[float]] = []
    for left, bottom, right, top in boxes:
        if right <= left or top <= bottom:
            continue
        line = lines[-1] if lines else None
        if line and bottom < line[3] and top > line[1] and left >= line[0] - 1:
            line[1], line[2], line[3] = min(line[1], bottom), max(line[2], right), max(line[3], top)
        else:
            lines.append([left, bottom, right, top])
    return [
        [round(v, 5) for v in (l / width, 1 - t / height, (r - l) / width, (t - b) / height)]
        for l, b, r, t in lines  # noqa: E741 - left, bottom, right, top
    ]


def _found(text: str, wanted: str) -> list[tuple[int, int]]:
    """Begin and end of what is wanted, or of those pieces of it that stand in the text."""
    if (at := text.find(wanted)) >= 0:
        return [(at, at + len(wanted))]
    starts = range(0, len(wanted) - _PART + 1, _PART)
    places = [text.find(wanted[start : start + _PART]) for start in starts]
    return [(at, at + _PART) for at in places if at >= 0]


if __name__ == "__main__":
    main()
