"""IPYNB: the cells of a notebook, with the headings of its text as sections."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mixtral_rag.errors import UnreadableError
from mixtral_rag.ingest.readers import Parsed, ReadOptions
from mixtral_rag.ingest.readers.encoding import decode
from mixtral_rag.ingest.readers.inside import read_as

_LONGEST_OUTPUT = 2000  # characters of one cell's output
_FENCE = "~~~~~~"  # which nobody writes, so that code cannot end it
_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def read(path: Path, options: ReadOptions) -> Parsed:
    """Read a notebook as Markdown: text as it is, code and its printed output in fences."""
    source, _ = decode(path)
    try:
        book = json.loads(source)
    except ValueError as error:
        raise UnreadableError(f"{path} is no notebook: {error}") from error
    if not isinstance(book, dict):
        raise UnreadableError(f"{path} is no notebook")
    sheets = [s for s in _list(book.get("worksheets")) if isinstance(s, dict)]  # before 2015
    cells = [*_list(book.get("cells")), *(c for s in sheets for c in _list(s.get("cells")))]
    metadata = book.get("metadata")
    language = ""
    if isinstance(metadata, dict) and isinstance(metadata.get("kernelspec"), dict):
        language = str(metadata["kernelspec"].get("language", ""))
    parts = [part for c in cells if isinstance(c, dict) for part in _cell(c, language)]
    return read_as(".md", "\n\n".join(parts).encode("utf-8", "replace"), options, name=str(path))


def _cell(cell: dict[str, Any], language: str) -> Iterator[str]:
    text = _joined(cell.get("source", cell.get("input"))).strip("\n")
    kind = cell.get("cell_type")
    if kind == "heading":
        text = "#" * int(cell.get("level") or 1) + " " + text
    if text.strip():
        yield f"{_FENCE}{language}\n{text}\n{_FENCE}" if kind in ("code", "raw") else text
    printed = "\n".join(filter(None, map(_output, _list(cell.get("outputs")))))
    if printed:
        rest = len(printed) - _LONGEST_OUTPUT
        if rest > 0:
            printed = f"{printed[:_LONGEST_OUTPUT]}\n… {rest:,} more characters"
        yield f"Output:\n{_FENCE}\n{printed}\n{_FENCE}"


def _output(output: Any) -> str:
    if not isinstance(output, dict):
        return ""
    if output.get("output_type") in ("error", "pyerr"):
        return f"{output.get('ename')}: {output.get('evalue')}"
    data = output.get("data")
    text = output.get("text") or (data.get("text/plain") if isinstance(data, dict) else None)
    return _COLOURS.sub("", _joined(text)).strip("\n")


def _joined(value: Any) -> str:
    """Text, which notebooks may keep as a list of lines."""
    return "".join(map(str, value)) if isinstance(value, list) else str(value or "")


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
