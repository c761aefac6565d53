"""PDF: text by pypdfium2, title, outline and encryption by pypdf."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mixtral_rag.errors import EncryptedError, UnreadableError
from mixtral_rag.ingest.readers import Block, Parsed, ReadOptions
from mixtral_rag.ingest.readers.layout import (
    RunningLines,
    full_width,
    heading_level,
    unwrap,
)


def read(path: Path, options: ReadOptions) -> Parsed:
    """Read the text of every page; pages without text are reported, not skipped in silence."""
    title, outline = _metadata(path)
    pages = _pages(path)
    running = RunningLines(pages)
    full = full_width(line for lines in pages for line in lines)
    blocks: list[Block] = []
    empty: list[int] = []
    section: tuple[str, ...] = ()
    for number, lines in enumerate(pages, start=1):
        body = running.without(lines, number)
        if not body:
            empty.append(number)
        headings = outline.get(number, []) if outline else _numbered(body, section)
        for part, heading in _parts(body, headings, section):
            section = heading
            if text := unwrap(part, full):
                blocks.append(Block(text, number, section))
    return Parsed(title, blocks, len(pages), {"needs_ocr": empty} if empty else {})


def _pages(path: Path) -> list[list[str]]:
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        if "password" in str(error).lower():
            raise _encrypted(path) from error
        raise UnreadableError(f"{path} is not a readable PDF: {error}") from error
    with contextlib.closing(document):
        pages = []
        for i in range(len(document)):
            try:
                pages.append(_lines(document[i]))
            except pypdfium2.PdfiumError:  # one broken page is reported as empty
                pages.append([])
        return pages


def _encrypted(path: Path) -> EncryptedError:
    return EncryptedError(f"{path} needs a password; save a copy without one and add that")


def _lines(page: Any) -> list[str]:
    with contextlib.closing(page), contextlib.closing(page.get_textpage()) as text_page:
        text = text_page.get_text_bounded()
    # PDFium marks a hyphen at the end of a line by U+FFFE or U+0002, and may give NUL.
    text = text.replace("\ufffe\r\n", "").replace("\x02\r\n", "").replace("\x00", "")
    return [line for line in text.replace("\r\n", "\n").split("\n") if line.strip()]


def _metadata(path: Path) -> tuple[str, dict[int, list[tuple[str, ...]]]]:
    """The title, and for each page the headings of the outline that begin on it."""
    import pypdf

    try:
        reader = pypdf.PdfReader(path)
        if reader.is_encrypted and not reader.decrypt(""):
            raise _encrypted(path)
        title = (reader.metadata.title if reader.metadata else None) or ""
        outline: dict[int, list[tuple[str, ...]]] = {}
        for page, headings in _outline(reader, reader.outline, ()):
            outline.setdefault(page, []).append(headings)
    except EncryptedError:
        raise
    except Exception:  # noqa: BLE001 - pypdf stumbles in many ways over damaged files; they only
        # lose title and outline, for PDFium may still read the text and says so if it cannot
        return "", {}
    return title.strip(), outline


def _outline(
    reader: Any, items: Sequence[Any], above: tuple[str, ...]
) -> Iterator[tuple[int, tuple[str, ...]]]:
    last = above
    for item in items:
        if isinstance(item, list):
            yield from _outline(reader, item, last)
            continue
        last = (*above, " ".join(str(item.title).split()))
        page = reader.get_destination_page_number(item)
        if page is not None and page >= 0:
            yield page + 1, last


def _numbered(lines: Sequence[str], section: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Headings such as `3.2. Interface` on a page of a document that has no outline."""
    found: list[tuple[str, ...]] = []
    for line in lines:
        level = heading_level(line)
        # A line `2. text` is as likely to be an item of a list; dots lead to a page number.
        if level is None or level < 2 or ". ." in line or len(line) > 70:
            continue
        above = [h for h in section if (heading_level(h) or 0) < level]
        section = (*above, " ".join(line.split()))
        found.append(section)
    return found


def _parts(
    lines: list[str], headings: list[tuple[str, ...]], section: tuple[str, ...]
) -> Iterator[tuple[list[str], tuple[str, ...]]]:
    """Cut a page where the outline's headings stand; a heading not found counts from the top."""
    start = 0
    for heading in headings:
        name = _squeezed(heading[-1])
        at = next(
            (i for i in range(start, len(lines)) if _squeezed(lines[i]).endswith(name) and name),
            start,
        )
        if at > start:
            yield lines[start:at], section
            start = at
        section = heading
    yield lines[start:], section


def _squeezed(text: str) -> str:
    return "".join(text.split()).lower()
