"""PPTX: each slide a page under its title, with tables, charts, diagrams and notes."""

from collections.abc import Iterator
from pathlib import Path

from mixtral_rag.errors import UnreadableError
from mixtral_rag.ingest.readers import Block, PageState, Parsed, ReadOptions, ooxml, tables
from mixtral_rag.ingest.readers.ooxml import (
    Element,
    Package,
    child,
    descendants,
    get,
    local,
    reference,
)

_RUNNING = frozenset({"sldNum", "dt", "ftr", "hdr", "sldImg"})  # placeholders of every slide
_LISTS = frozenset({"body", "obj", ""})  # placeholders whose paragraphs are items
_TITLES = frozenset({"title", "ctrTitle"})


def read(path: Path, options: ReadOptions) -> Parsed:
    """Read a presentation; page numbers are those of its slides, sections their titles."""
    with ooxml.opened(path) as package:
        main = package.main()
        related = package.related(main)
        slides = list(descendants(package.xml(main), "sldId"))
        if not slides:
            raise UnreadableError(f"{path} has no slides, or is no presentation")
        blocks: list[Block] = []
        empty: list[int] = []
        pictures: list[str] = []
        for number, slide in enumerate(slides, 1):
            name = related.get(reference(slide), ("", ""))[1]
            found, has_picture = _slide(package, name, number)
            blocks += found
            if not found:
                empty.append(number)
                pictures += [str(number)] if has_picture else []
        title = package.title()
    pages: dict[PageState, list[int]] = {"empty": empty} if empty else {}
    problems = [f"slides that are only pictures: {', '.join(pictures)}"] if pictures else []
    if title.lower() in ("powerpoint presentation", "powerpoint 演示文稿"):
        title = ""  # what the program writes when nobody has set one
    first = next((b.section[0] for b in blocks if b.section), "")
    return Parsed(title or first, blocks, len(slides), pages, problems=problems)


def _slide(package: Package, name: str, number: int) -> tuple[list[Block], bool]:
    """A slide's text with its notes, and whether it shows a picture."""
    root = package.xml(name)
    if root is None:
        return [], False
    related = package.related(name)
    tree = child(root, "cSld", "spTree")
    title = ""
    lines: list[str] = []
    for kind, text in _shapes(package, related, tree):
        if kind in _TITLES and not title:
            title = " ".join(text.split())
            lines.insert(0, title)
        elif text.strip():
            lines.append(text)
    section = (title,) if title else ()
    blocks = [Block("\n".join(lines), number, section)] if any(lines) else []
    for target in (t for kind, t in related.values() if kind == "notesSlide"):
        notes = child(package.xml(target), "cSld", "spTree")
        texts = [t for kind, t in _shapes(package, {}, notes) if kind == "body" and t.strip()]
        if texts:
            blocks.append(Block("Notes: " + "\n".join(texts), number, section))
    return blocks, next(descendants(tree, "pic"), None) is not None


def _shapes(
    package: Package, related: dict[str, tuple[str, str]], tree: Element
) -> Iterator[tuple[str, str]]:
    """Kind of placeholder (`-` for none) and text of each shape, those in groups too."""
    for shape in descendants(tree, "sp", "graphicFrame", "cxnSp"):
        if local(shape) == "graphicFrame":
            yield "-", _graphic(package, related, shape)
            continue
        holder = next(descendants(child(shape, "nvSpPr"), "ph"), None)
        kind = get(holder, "type") if holder is not None else "-"
        if kind in _RUNNING:
            continue
        yield kind, _paragraphs(child(shape, "txBody"), is_list=kind in _LISTS)


def _paragraphs(body: Element, *, is_list: bool = False) -> str:
    found: list[tuple[int, str]] = []
    for paragraph in descendants(body, "p"):
        level = get(child(paragraph, "pPr"), "lvl")
        if text := _text(paragraph).strip():
            found.append((int(level) if level.isdecimal() and len(level) < 2 else 0, text))
    marked = is_list and len(found) > 1
    lines = [("  " * n + "- " if marked or n else "") + text for n, text in found]
    return "\n".join(lines)


def _text(paragraph: Element) -> str:
    parts = descendants(paragraph, "t", "br")
    return "".join("\n" if local(e) == "br" else e.text or "" for e in parts)


def _graphic(package: Package, related: dict[str, tuple[str, str]], frame: Element) -> str:
    """A table's rows, a chart's figures or a diagram's texts."""
    data = child(frame, "graphic", "graphicData")
    if (table := child(data, "tbl")) is not None:
        return tables.text(
            [_paragraphs(child(cell, "txBody")).replace("\n", " ") for cell in row if
             local(cell) == "tc"]
            for row in table if local(row) == "tr"
        )  # fmt: skip
    for element in data if data is not None else ():
        name = "dm" if local(element) == "relIds" else "id"
        target = related.get(reference(element, name), ("", ""))[1]
        if target and (root := package.xml(target)) is not None:
            if local(element) == "chart":
                return tables.text(_chart(root))
            return "\n".join(
                f"- {text}" for p in descendants(root, "p") if (text := _text(p).strip())
            )
    return ""


def _chart(root: Element) -> Iterator[list[str]]:
    """A chart as a table: its title, then categories down and series across."""
    title = child(root, "chart", "title")
    yield ["".join(t.text or "" for t in descendants(title, "t"))]
    series = list(descendants(child(root, "chart", "plotArea"), "ser"))
    columns = [_points(child(s, "val") if child(s, "val") is not None else child(s, "yVal"))
               for s in series]  # fmt: skip
    first = series[0] if series else None
    names = _points(child(first, "cat") if child(first, "cat") is not None else
                    child(first, "xVal"))  # fmt: skip
    yield ["", *(" ".join(_points(child(s, "tx")).values()) for s in series)]
    for index in sorted({i for column in (names, *columns) for i in column}):
        yield [names.get(index, ""), *(column.get(index, "") for column in columns)]


def _points(element: Element) -> dict[int, str]:
    points = {}
    for point in descendants(element, "pt"):
        index = get(point, "idx")
        value = next(descendants(point, "v"), None)
        if index.isdecimal() and len(index) < 7 and value is not None:
            points[int(index)] = value.text or ""
    return points
