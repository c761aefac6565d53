"""HTML: headings, paragraphs, lists, tables and code as text; scripts and navigation left out."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mixtral_rag.errors import UnreadableError
from mixtral_rag.ingest.readers import Block, Parsed, ReadOptions
from mixtral_rag.ingest.readers.encoding import decode, decode_as

_DROPPED = ["script", "style", "noscript", "template", "svg", "nav", "iframe", "object", "head"]
_BREAKS = frozenset(
    [
        "address",
        "article",
        "aside",
        "blockquote",
        "dd",
        "div",
        "dl",
        "dt",
        "fieldset",
        "figcaption",
        "figure",
        "footer",
        "form",
        "header",
        "hr",
        "main",
        "ol",
        "p",
        "section",
        "table",
        "tbody",
        "thead",
        "tr",
        "ul",
        "br",
        "li",
    ]
)
_HEADING = re.compile(r"^h[1-6]$")
# <meta charset="x">, <meta http-equiv=... content="text/html; charset=x">, <?xml encoding="x"?>
_CHARSET = re.compile(
    rb"<(?:meta\b[^>]*?\bcharset|\?xml\b[^>]*?\bencoding)\s*=\s*[\"']?\s*([A-Za-z0-9_:.-]{1,40})",
    re.IGNORECASE,
)


def read(path: Path, options: ReadOptions) -> Parsed:
    """Read an HTML file, with its headings as sections."""
    from bs4 import BeautifulSoup
    from bs4.exceptions import ParserRejectedMarkup

    source, encoding = _decoded(path)
    try:
        soup = BeautifulSoup(source, "lxml")
    except ParserRejectedMarkup as error:
        raise UnreadableError(f"{path} is not readable HTML: {error}") from error
    title = soup.title.get_text(" ", strip=True) if soup.title else ""
    for tag in soup(_DROPPED):
        tag.decompose()
    blocks: list[Block] = []
    headings: list[tuple[int, str]] = []
    text: list[str] = []
    for level, piece in _walk(soup.body or soup):
        if level is None:
            text.append(piece)
            continue
        _add(blocks, text, headings)
        name = " ".join(piece.split())
        headings = [h for h in headings if h[0] < level] + [(level, name)]
        text = [name + "\n"]
    _add(blocks, text, headings)
    return Parsed(" ".join(title.split()), blocks, encoding=encoding)


def _decoded(path: Path) -> tuple[str, str]:
    """The source by its mark, by what it declares if its bytes bear that out, else as detected."""
    data = path.read_bytes()
    declared = _CHARSET.search(data[:4096])
    if declared is None:
        return decode(path, data)
    return decode_as(path, data, declared.group(1).decode("ascii"))


def _walk(node: Any) -> Iterator[tuple[int | None, str]]:
    """Pieces of text in order; headings carry their level."""
    from bs4.element import Comment, Declaration, Doctype, NavigableString, ProcessingInstruction

    for child in node.children:
        if isinstance(child, Comment | Declaration | Doctype | ProcessingInstruction):
            continue
        if isinstance(child, NavigableString):
            yield None, re.sub(r"\s+", " ", child)
        elif _HEADING.match(child.name):
            yield int(child.name[1]), child.get_text(" ")
        elif child.name == "pre":
            yield None, "\n" + child.get_text() + "\n"
        elif child.name in ("td", "th"):
            yield from _walk(child)
            yield None, " | "
        else:
            mark = "\n- " if child.name == "li" else "\n" if child.name in _BREAKS else ""
            yield None, mark
            yield from _walk(child)
            yield None, "\n" if child.name in _BREAKS else ""


def _add(blocks: list[Block], pieces: list[str], headings: list[tuple[int, str]]) -> None:
    lines = (line.strip() for line in "".join(pieces).split("\n"))
    text = "\n".join(line for line in lines if line not in ("", "-", "|"))
    # A line break inside a Chinese sentence of the source is not a space.
    text = re.sub(r"(?<=[\u3000-\u9fff\uff00-\uffef]) (?=[\u3000-\u9fff\uff00-\uffef])", "", text)
    if text:
        blocks.append(Block(text, None, tuple(name for _, name in headings)))
