"""Packages of Office Open XML (DOCX, PPTX): their parts as XML and how parts relate.

Read by lxml itself: text boxes, notes, fields and changes are out of sight of the usual libraries,
which also fail on files that only bend the standard.
"""

import contextlib
import posixpath
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixtral_rag.errors import UnreadableError
from mixtral_rag.ingest.readers import ole, zips

Element = Any  # of lxml, which has no types
# The strict variant of the standard differs in the names of its namespaces.
_STRICT = re.compile(rb"http://purl\.oclc\.org/ooxml/(\w+)/")
_TRANSITIONAL = rb"http://schemas.openxmlformats.org/\1/2006/"
_RELATION = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}"


def parse(data: bytes, name: str) -> Element:
    """The root of an XML document; entities are not expanded, nothing outside is loaded.

    Raises:
        UnreadableError: not well-formed, named `name`.
    """
    from lxml import etree

    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, remove_comments=True,
        remove_pis=True,
    )  # fmt: skip
    try:
        root = etree.fromstring(data, parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise UnreadableError(f"{name} is damaged: {error}") from error
    if root is None:
        raise UnreadableError(f"{name} is damaged: it is empty")
    return root


def local(element: Element) -> str:
    """An element's name without its namespace; empty for an entity."""
    return element.tag.rsplit("}", 1)[-1] if isinstance(element.tag, str) else ""


def get(element: Element, name: str) -> str:
    """An attribute by its name in whatever namespace, empty when absent."""
    if element is None:
        return ""
    for key, value in element.attrib.items():
        if key.rsplit("}", 1)[-1] == name:
            return str(value)
    return ""


def child(element: Element, *names: str) -> Element:
    """The first child of a child ... by their names, else None."""
    for name in names:
        if element is None:
            return None
        element = next((c for c in element if local(c) == name), None)
    return element


def descendants(element: Element, *names: str) -> Iterator[Element]:
    """Elements below with one of the names; of two alternative renderings only the first."""
    if element is None:
        return
    for below in element:
        name = local(below)
        if name == "AlternateContent":
            below = child(below, "Choice") if child(below, "Choice") is not None else below
            yield from descendants(below, *names)
        elif name in names:
            yield below
        else:
            yield from descendants(below, *names)


@dataclass(frozen=True)
class Package:
    """An opened package.

    Args:
        path: the file, named in errors.
        archive: its ZIP file.
    """

    path: Path
    archive: zipfile.ZipFile

    def xml(self, name: str) -> Element:
        """A part's root element, None when there is no such part."""
        try:
            data = zips.part(self.archive, name)
        except KeyError:
            return None
        return parse(_STRICT.sub(_TRANSITIONAL, data), f"{self.path}: {name}")

    def related(self, name: str) -> dict[str, tuple[str, str]]:
        """Kind and name of each part that the part `name` refers to, by identifier.

        What lies outside the package is left out.
        """
        folder, file = posixpath.split(name)
        root = self.xml(posixpath.join(folder, "_rels", f"{file}.rels"))
        found: dict[str, tuple[str, str]] = {}
        for relation in root if root is not None else ():
            if get(relation, "TargetMode") == "External":
                continue
            target = posixpath.normpath(posixpath.join("/", folder, get(relation, "Target")))
            kind = get(relation, "Type").rsplit("/", 1)[-1]
            found[get(relation, "Id")] = (kind, target.lstrip("/"))
        return found

    def main(self) -> str:
        """The name of the part that holds the document.

        Raises:
            UnreadableError: there is none.
        """
        for kind, target in self.related("").values():
            if kind == "officeDocument":
                return target
        raise UnreadableError(f"{self.path} is no document of Office, or is damaged")

    def title(self) -> str:
        """The title in the document's properties."""
        try:
            title = child(self.xml("docProps/core.xml"), "title")
        except UnreadableError:
            return ""
        return " ".join((title.text or "").split()) if title is not None else ""


def reference(element: Element, name: str = "id") -> str:
    """The identifier of the relation that an element's attribute refers to."""
    return str(element.get(_RELATION + name, "")) if element is not None else ""


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Package]:
    """A package opened within the limits of ZIP files.

    Raises:
        EncryptedError: protected by a password.
        UnsupportedError: in an old format under the new one's name.
        UnreadableError: damaged, or it would grow too large.
    """
    if ole.is_ole(path):
        raise ole.refusal(path)
    with zips.opened(path) as archive:
        yield Package(path, archive)
