"""Readers: one file in, its text in blocks out. They run in a worker process and trust nothing."""

import importlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from mixtral_rag.errors import UnreadableError, UnsupportedError
from mixtral_rag.ingest.readers.formats import KNOWN, MODULES, suffix_of

SUFFIXES = frozenset(MODULES)
_LONGEST_HEADING, _DEEPEST = 160, 8


@dataclass(frozen=True, slots=True)
class Block:
    """A run of text on one page under one heading."""

    text: str
    page: int | None = None
    section: tuple[str, ...] = ()


PageState = Literal["empty", "garbled", "needs_ocr", "ocr"]
"""What became of a page that did not simply give its text: nothing stands on it; its characters
are mostly invalid; it is a picture; it was a picture and was read by OCR."""
LOST: tuple[PageState, ...] = ("garbled", "needs_ocr")


@dataclass(frozen=True, slots=True)
class Parsed:
    """A document's text, and what a reader must say of it.

    Args:
        title: the title the document gives itself, else empty.
        blocks: the text in reading order.
        n_pages: pages in the file, None where the format has none.
        pages: 1-based numbers of the pages that did not simply give their text, by what became of
            them.
        encoding: how the bytes of a text file were read, such as `gb18030`; empty for formats that
            say so themselves.
        problems: parts that could not be read, such as one file of an archive, one line each.
    """

    title: str
    blocks: list[Block]
    n_pages: int | None = None
    pages: dict[PageState, list[int]] = field(default_factory=dict)
    encoding: str = ""
    problems: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """A form that can be sent as JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Parsed":
        """The inverse of `as_dict`, with titles and headings cut to a length a person would write.

        They go along with every passage, so a file must not be able to make them long or many.
        """
        blocks = [
            Block(_clean(b["text"]), b["page"], tuple(_cut(h) for h in b["section"][:_DEEPEST]))
            for b in data["blocks"]
        ]
        return cls(
            _cut(data["title"]), blocks, data["n_pages"], data["pages"], data["encoding"],
            [_clean(p) for p in data["problems"]],
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How to read.

    Args:
        ocr: languages as tesseract names them, such as `chi_sim+eng`, to read pages that are
            pictures; None leaves those pages unread.
    """

    ocr: str | None = None


def _clean(text: str) -> str:
    """Text that UTF-8 can hold: a lone surrogate becomes a question mark."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _cut(heading: str) -> str:
    heading = _clean(heading)
    return heading if len(heading) <= _LONGEST_HEADING else heading[: _LONGEST_HEADING - 1] + "…"


def read(path: Path, options: ReadOptions = ReadOptions()) -> Parsed:
    """Read one document with the reader for its suffix.

    Raises:
        UnsupportedError: there is no reader for the suffix.
        UnreadableError: missing, not permitted, empty or damaged.
        EncryptedError: the document needs a password.
    """
    name = MODULES.get(suffix_of(path))
    if name is None:
        raise UnsupportedError(f"{path}: no reader for {path.suffix or 'files without a suffix'}; "
                               f"known are {KNOWN}")  # fmt: skip
    try:
        if path.stat().st_size == 0:
            raise UnreadableError(f"{path} is empty")
        module = importlib.import_module(f"mixtral_rag.ingest.readers.{name}")
        parsed: Parsed = module.read(path, options)
    except OSError as error:
        raise UnreadableError(f"cannot read {path}: {error.strerror or error}") from error
    if not any(block.text.strip() for block in parsed.blocks):
        hint = "; its pages are pictures, which --ocr reads" if "needs_ocr" in parsed.pages else ""
        raise UnreadableError(f"{path} holds no text{hint}")
    return parsed
