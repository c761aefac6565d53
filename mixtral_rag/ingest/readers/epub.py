"""EPUB: the chapters in reading order, under their headings and titles of the contents."""

import posixpath
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from mixtral_rag.errors import EncryptedError, UnreadableError
from mixtral_rag.ingest.readers import Block, Parsed, ReadOptions, zips
from mixtral_rag.ingest.readers.inside import read_as
from mixtral_rag.ingest.readers.ooxml import Element, child, descendants, get, local, parse

_CHAPTERS = frozenset({"application/xhtml+xml", "text/html", "application/x-dtbook+xml"})
# Fonts are made unreadable so that nobody takes them; that is not protection of the text.
_FONTS = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")


def read(path: Path, options: ReadOptions) -> Parsed:
    """Read a book; sections are the chapter's title in the contents and its headings."""
    with zips.opened(path) as archive:
        _refuse_protected(path, archive)
        book = _Book(path, archive)
        blocks: list[Block] = []
        problems: list[str] = []
        for name in book.spine:
            try:
                data = zips.part(archive, name)
                title = book.titles.get(name, "")
                blocks += _chapter(data, title, options, f"{path}: {name}")
            except KeyError:
                problems.append(f"{name} is missing")
            except UnreadableError as error:
                problems.append(str(error))
        if not blocks and problems:
            raise UnreadableError(_all_lost(path, problems))
        return Parsed(book.title, blocks, problems=problems)


def _all_lost(path: Path, problems: list[str]) -> str:
    return f"{path}: no chapter can be read: {problems[0].removeprefix(f'{path}: ')}"


def _chapter(data: bytes, title: str, options: ReadOptions, name: str) -> Iterator[Block]:
    for block in read_as(".xhtml", data, options, name=name).blocks:
        section = block.section
        if title and _squeezed(title) not in map(_squeezed, section):
            section = (title, *section)
        yield Block(block.text, None, section)


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _refuse_protected(path: Path, archive: zipfile.ZipFile) -> None:
    try:
        root = parse(zips.part(archive, "META-INF/encryption.xml"), str(path))
    except KeyError:
        return
    methods = [get(e, "Algorithm") for e in root.iter() if local(e) == "EncryptionMethod"]
    if any(method not in _FONTS for method in methods):
        raise EncryptedError(f"{path} is locked by its seller (DRM); only a free copy can be read")


class _Book:
    """What the package file says: title, chapters in order, and the contents."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self._path, self._archive = path, archive
        container = self._xml("META-INF/container.xml")
        rootfile = next(descendants(container, "rootfile"), None)
        name = unquote(get(rootfile, "full-path"))
        package = self._xml(name)
        self._folder = posixpath.dirname(name)
        title = next(descendants(child(package, "metadata"), "title"), None)
        self.title = " ".join("".join(title.itertext()).split()) if title is not None else ""
        items = {get(e, "id"): e for e in descendants(child(package, "manifest"), "item")}
        nav = next((e for e in items.values() if "nav" in get(e, "properties").split()), None)
        spine = child(package, "spine")
        refs = [items.get(get(e, "idref")) for e in descendants(spine, "itemref")]
        self.spine = list(dict.fromkeys(
            self._place(self._folder, get(e, "href")) for e in refs
            if e is not None and e is not nav and get(e, "media-type") in _CHAPTERS
        ))  # fmt: skip
        self.titles: dict[str, str] = {}
        for element in (nav, items.get(get(spine, "toc"))):
            if element is not None and not self.titles:
                self._contents(self._place(self._folder, get(element, "href")))

    def _xml(self, name: str) -> Element:
        try:
            return parse(zips.part(self._archive, name), f"{self._path}: {name}")
        except KeyError:
            raise UnreadableError(f"{self._path} is no EPUB, or is damaged") from None

    @staticmethod
    def _place(folder: str, href: str) -> str:
        href = unquote(href.split("#", 1)[0])
        return posixpath.normpath(posixpath.join("/", folder, href)).lstrip("/")

    def _contents(self, name: str) -> None:
        """The titles of chapters, from a navigation document or an NCX; the first for each."""
        try:
            root = self._xml(name)
        except UnreadableError:  # a book without contents still has its text
            return
        folder = posixpath.dirname(name)
        for element in root.iter():
            if local(element) == "navPoint":
                href = get(child(element, "content"), "src")
                label = child(element, "navLabel")
            elif local(element) == "a":
                href, label = get(element, "href"), element
            else:
                continue
            text = " ".join("".join(label.itertext()).split()) if label is not None else ""
            if href and text:
                self.titles.setdefault(self._place(folder, href), text)
