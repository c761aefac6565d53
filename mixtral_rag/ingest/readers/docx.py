"""DOCX: paragraphs under their headings, lists with their numbers, tables, text boxes, notes."""

import re
from collections.abc import Iterator
from pathlib import Path

from mixtral_rag.errors import UnreadableError
from mixtral_rag.ingest.readers import Block, Parsed, ReadOptions, ooxml, tables
from mixtral_rag.ingest.readers.docx_numbers import Numbers, numbers_of
from mixtral_rag.ingest.readers.ooxml import Element, Package, child, descendants, get, local

_HEADING = re.compile(r"^(?:heading|标题)\s*([1-9])$", re.IGNORECASE)
# What holds other paragraphs or runs without being one; deleted text is not among them.
_WRAPPERS = frozenset(
    [
        "sdt",
        "sdtContent",
        "ins",
        "moveTo",
        "customXml",
        "smartTag",
        "hyperlink",
        "fldSimple",
        "dir",
        "bdo",
        "ruby",
        "rubyBase",
    ]
)
_SIGNS = {"tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}


def read(path: Path, options: ReadOptions) -> Parsed:
    """Read a Word document, with its headings as sections."""
    with ooxml.opened(path) as package:
        main = package.main()
        document = _Document(package, main)
        body = child(package.xml(main), "body")
        if body is None:
            raise UnreadableError(f"{path} is no Word document, or is damaged")
        document.walk(body)
        document.finish()
        return Parsed(package.title() or document.title, document.blocks)


class _Style:
    def __init__(self, element: Element) -> None:
        properties = child(element, "pPr")
        self.name = get(child(element, "name"), "val")
        self.base = get(child(element, "basedOn"), "val")
        self.outline = get(child(properties, "outlineLvl"), "val")
        self.list = get(child(properties, "numPr", "numId"), "val")
        self.depth = get(child(properties, "numPr", "ilvl"), "val")


class _Document:
    """The text of the parts, gathered under headings as it is walked."""

    def __init__(self, package: Package, main: str) -> None:
        self._parts = list(package.related(main).values())
        self._package = package
        self._styles = {
            get(s, "styleId"): _Style(s) for s in self._children("styles") if local(s) == "style"
        }
        self._numbers: Numbers = numbers_of(self._part("numbering"))
        self._notes = {
            (kind, get(note, "id")): note
            for kind in ("footnotes", "endnotes")
            for note in self._children(kind)
        }
        self.blocks: list[Block] = []
        self.title = ""
        self._headings: list[tuple[int, str]] = []
        self._lines: list[str] = []
        self._n_notes = 0

    def _part(self, kind: str) -> Element:
        name = next((name for k, name in self._parts if k == kind), None)
        return self._package.xml(name) if name else None

    def _children(self, kind: str) -> list[Element]:
        part = self._part(kind)
        return list(part) if part is not None else []

    def walk(self, element: Element) -> None:
        """Take in the paragraphs and tables below an element."""
        for below in element:
            name = local(below)
            if name == "p":
                self._paragraph(below)
            elif name == "tbl":
                self._lines.append(tables.text(self._rows(below)))
            elif name in _WRAPPERS:
                self.walk(below)

    def finish(self) -> None:
        """End the last section, and add what stands at the top and bottom of all pages."""
        self._cut()
        found: dict[str, None] = {}
        for kind, name in self._parts:
            if kind in ("header", "footer") and (root := self._package.xml(name)) is not None:
                lines = [self._text(p, []) for p in descendants(root, "p")]
                found.update(dict.fromkeys(x for t in lines if not (x := t.strip()).isdigit()))
        if text := "\n".join(filter(None, found)):
            self.blocks.append(Block(text))

    def _cut(self) -> None:
        if text := "\n".join(line for line in self._lines if line.strip()):
            self.blocks.append(Block(text, None, tuple(name for _, name in self._headings)))
        self._lines = []

    def _paragraph(self, element: Element) -> None:
        properties = child(element, "pPr")
        chain = list(self._chain(get(child(properties, "pStyle"), "val")))
        names = [style.name.lower() for style in chain]
        notes: list[str] = []
        text = self._text(element, notes)
        if any(name.startswith("toc ") for name in names):
            return  # a table of contents repeats the headings
        if text.strip():
            text = self._mark(properties, chain) + text.strip("\n")
            level = _level(properties, chain)
            if level is not None and len(text) <= 200:
                name = " ".join(text.split())
                self._cut()
                self._headings = [h for h in self._headings if h[0] < level] + [(level, name)]
            elif "title" in names and not self.title:
                self.title = " ".join(text.split())
            self._lines.append(text)
        for box in descendants(element, "txbxContent"):
            self.walk(box)
        self._lines += notes

    def _chain(self, style_id: str) -> Iterator[_Style]:
        for _ in range(20):  # styles of a damaged file may stand on each other in a circle
            style = self._styles.get(style_id)
            if style is None:
                return
            yield style
            style_id = style.base

    def _mark(self, properties: Element, chain: list[_Style]) -> str:
        own = child(properties, "numPr")
        list_id = get(child(own, "numId"), "val") or next((s.list for s in chain if s.list), "")
        depth = get(child(own, "ilvl"), "val") or next((s.depth for s in chain if s.depth), "0")
        return self._numbers.next(list_id, int(depth) if depth.isdecimal() else 0)

    def _text(self, element: Element, notes: list[str]) -> str:
        """A paragraph's text; the notes it refers to are added to `notes`."""
        out: list[str] = []
        for below in element:
            name = local(below)
            if name == "t":
                out.append(below.text or "")
            elif name in _SIGNS:
                out.append(_SIGNS[name] if get(below, "type") != "page" else "")
            elif name in ("footnoteReference", "endnoteReference"):
                out.append(self._note(name.removesuffix("Reference") + "s", below, notes))
            elif name in _WRAPPERS or name in ("r", "rt") or _is_formula(below):
                out.append(self._text(below, notes))
        return "".join(out)

    def _note(self, kind: str, reference: Element, notes: list[str]) -> str:
        note = self._notes.pop((kind, get(reference, "id")), None)
        if note is None:
            return ""
        self._n_notes += 1
        text = " ".join(self._text(p, []).strip() for p in descendants(note, "p"))
        notes.append(f"[^{self._n_notes}]: {text.strip()}")
        return f"[^{self._n_notes}]"

    def _rows(self, table: Element) -> Iterator[list[str]]:
        for row in descendants(table, "tr"):
            cells: list[str] = []
            for cell in descendants(row, "tc"):
                merge = child(cell, "tcPr", "vMerge")
                goes_on = merge is not None and get(merge, "val") != "restart"
                cells.append("" if goes_on else self._cell(cell))
            yield cells

    def _cell(self, cell: Element) -> str:
        notes: list[str] = []
        parts: list[str] = []
        for below in descendants(cell, "p", "tbl"):
            if local(below) == "tbl":
                parts += ["; ".join(filter(None, row)) for row in self._rows(below)]
            else:
                mark = self._mark(child(below, "pPr"), [])
                parts.append(mark.strip() + " " + self._text(below, notes))
                parts += [
                    self._text(p, notes)
                    for box in descendants(below, "txbxContent")
                    for p in descendants(box, "p")
                ]
        return " ".join(" ".join([*parts, *notes]).split())


def _is_formula(element: Element) -> bool:
    return isinstance(element.tag, str) and element.tag.startswith("{") and "/math}" in element.tag


def _level(properties: Element, chain: list[_Style]) -> int | None:
    """Depth of a heading from 1, None for other paragraphs."""
    outline = get(child(properties, "outlineLvl"), "val")
    for style in chain:
        if outline:
            break
        if match := _HEADING.match(style.name):
            return int(match[1])
        outline = style.outline
    return int(outline) + 1 if outline.isdecimal() and int(outline) < 9 else None
