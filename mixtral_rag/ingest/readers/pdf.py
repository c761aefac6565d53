"""PDF by PDFium: the text of each page, title and outline; pictures by OCR where asked for.

What PDFium refuses as damaged is given to pypdf, which also reads files without a table of objects.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mixtral_rag.errors import EncryptedError, UnreadableError
from mixtral_rag.ingest import heartbeat
from mixtral_rag.ingest.readers import LOST, Block, PageState, Parsed, ReadOptions, ocr
from mixtral_rag.ingest.readers.layout import (
    RunningLines,
    full_width,
    heading_level,
    unwrap,
)
from mixtral_rag.ingest.readers.pdf_page import content, picture, ranges

_MOST_PAGES = 20_000
_MOST_BOOKMARKS = 20_000


def read(path: Path, options: ReadOptions) -> Parsed:
    """Read the text of every page; each page without is accounted for.

    Raises:
        UnreadableError: damaged, too many pages, or every page is lost.
        EncryptedError: needs a password.
    """
    import pypdfium2

    problems: list[str] = []
    try:
        opened = pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        return _read_damaged(path, error)
    with contextlib.closing(opened) as document:
        if len(document) > _MOST_PAGES:
            raise UnreadableError(
                f"{path} has {len(document):,} pages; at most {_MOST_PAGES:,} are read: split it"
            )
        title = document.get_metadata_value("Title")
        outline = _outline(document)
        pages, states = _pages(document, options, problems)
    if len(pages) and sum(len(states.get(s, [])) for s in LOST) == len(pages):
        raise UnreadableError(f"{path}: {_all_lost(states, problems, options)}")
    return Parsed(
        " ".join(title.split()), _blocks(pages, outline), len(pages), states, problems=problems
    )


def _read_damaged(path: Path, reason: Exception) -> Parsed:
    """Read by pypdf what PDFium refuses for `reason`, and say so."""
    import pypdf
    from pypdf.errors import PyPdfError

    if "password" in str(reason).lower():
        raise EncryptedError(
            f"{path} needs a password; save a copy without one and add that"
        ) from reason
    unreadable = UnreadableError(f"{path} is not a readable PDF: {reason}")
    try:
        found = pypdf.PdfReader(path).pages
        if len(found) > _MOST_PAGES:
            raise unreadable from reason
        pages = [[r for r in p.extract_text().split("\n") if r.strip()] for p in found]
    except (
        PyPdfError,
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
    ) as error:
        raise unreadable from error  # as pypdf stumbles over damaged files, in many ways
    lost = [number for number, lines in enumerate(pages, start=1) if not lines]
    if len(lost) == len(pages):
        raise unreadable from reason
    states: dict[PageState, list[int]] = {"garbled": lost} if lost else {}
    said = ["the file is damaged; some of its text may be missing"]
    return Parsed("", _blocks(pages, {}), len(pages), states, problems=said)


def _pages(
    document: Any, options: ReadOptions, problems: list[str]
) -> tuple[list[list[str]], dict[PageState, list[int]]]:
    """The lines of each page, and the numbers of pages that did not simply give their text."""
    import pypdfium2

    pages: list[list[str]] = []
    states: dict[PageState, list[int]] = {}
    damaged: list[int] = []
    for number in range(1, len(document) + 1):
        try:
            with contextlib.closing(document[number - 1]) as page:
                lines, state = content(page)
                if options.ocr and state in LOST:
                    lines, state = _recognised(page, number, options.ocr, lines, state, problems)
        except pypdfium2.PdfiumError:
            lines, state = [], "garbled"
            damaged.append(number)
        pages.append(lines)
        if state != "text":
            states.setdefault(state, []).append(number)
    if damaged:
        problems.append(f"damaged: page {ranges(damaged)}")
    return pages, states


def _recognised(
    page: Any, number: int, languages: str, lines: list[str], state: Any, problems: list[str]
) -> tuple[list[str], Any]:
    """The lines of a page by OCR and its new state; the old ones where OCR gives nothing sure."""
    heartbeat.alive()
    try:
        found = ocr.recognise(*picture(page, dpi=ocr.DPI, longest=ocr.LONGEST), languages)
    except OSError as error:
        problems.append(f"page {number}: {error}")
        return lines, state
    finally:
        heartbeat.alive()
    if found.lines:
        return found.lines, "ocr"
    if state == "garbled" or found.doubtful:
        return lines, state
    return lines, "text" if lines else "empty"  # a picture without words


def _all_lost(states: dict[PageState, list[int]], problems: list[str], options: ReadOptions) -> str:
    """Why a document gives nothing, in one line."""
    pictures, garbled = len(states.get("needs_ocr", [])), len(states.get("garbled", []))
    parts = [f"{pictures} are pictures"] * bool(pictures)
    parts += [f"{garbled} give no valid characters"] * bool(garbled)
    way = "OCR could not read them" if options.ocr else "--ocr reads pictures"
    more = f" ({problems[0]})" if problems else ""
    return f"no text in any of its {pictures + garbled} pages: {', '.join(parts)}{more}; {way}"


def _outline(document: Any) -> dict[int, list[tuple[str, ...]]]:
    """For each page the headings of the outline that begin on it."""
    outline: dict[int, list[tuple[str, ...]]] = {}
    above: list[str] = []
    for n, bookmark in enumerate(document.get_toc(max_depth=8)):
        if n >= _MOST_BOOKMARKS:
            break
        above = [*above[: bookmark.level], " ".join(bookmark.get_title().split())]
        destination = bookmark.get_dest()
        index = destination.get_index() if destination else None
        if index is not None:
            outline.setdefault(index + 1, []).append(tuple(above))
    return outline


def _blocks(pages: list[list[str]], outline: dict[int, list[tuple[str, ...]]]) -> list[Block]:
    running = RunningLines(pages)
    full = full_width(line for lines in pages for line in lines)
    blocks: list[Block] = []
    section: tuple[str, ...] = ()
    for number, lines in enumerate(pages, start=1):
        body = running.without(lines, number)
        headings = outline.get(number, []) if outline else _numbered(body, section)
        for part, heading in _parts(body, headings, section):
            section = heading
            if text := unwrap(part, full):
                blocks.append(Block(text, number, section))
    return blocks


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
