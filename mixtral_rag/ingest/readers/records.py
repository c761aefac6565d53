"""JSON and JSON Lines: values behind the paths of their keys, records of a list kept whole."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mixtral_rag.errors import UnreadableError
from mixtral_rag.ingest.readers import Block, Parsed, ReadOptions, tables
from mixtral_rag.ingest.readers.delimited import lines_of
from mixtral_rag.ingest.readers.encoding import decode

_SMALL = 12  # values; what has more gets a section of its own
_LONG = 200  # characters of a value that stands on a line of its own
_MOST_PROBLEMS = 10


def read(path: Path, options: ReadOptions) -> Parsed:
    """Read JSON; sections are the keys above, and for lists which items, `items 1-5`."""
    source, encoding = decode(path)
    if path.suffix.lower() != ".json":
        return _lines(path, source, encoding)
    try:
        value = json.loads(source)
    except ValueError as error:
        if source.lstrip().startswith(("{", "[")) and "\n" in source.strip():
            return _lines(path, source, encoding)  # many tools write JSON Lines by this name
        raise UnreadableError(f"{path} is not JSON: {error}") from error
    return Parsed("", list(_blocks(value, ())), encoding=encoding)


def _lines(path: Path, source: str, encoding: str) -> Parsed:
    wrong: list[str] = []

    def records() -> Iterator[tuple[int, str]]:
        for number, line in enumerate(lines_of(source), 1):
            if not line.strip():
                continue
            try:
                yield number, _record(json.loads(line))
            except ValueError as error:
                wrong.append(f"line {number} is not JSON: {error}")

    blocks = list(tables.pack(records(), "lines"))
    if not blocks:
        raise UnreadableError(f"{path} is not JSON: {wrong[0] if wrong else 'it is empty'}")
    if len(wrong) > _MOST_PROBLEMS:
        wrong[_MOST_PROBLEMS:] = [f"and {len(wrong) - _MOST_PROBLEMS:,} more lines"]
    return Parsed("", blocks, encoding=encoding, problems=wrong)


def _blocks(value: Any, section: tuple[str, ...]) -> Iterator[Block]:
    if isinstance(value, list):
        items = ((n, _record(item)) for n, item in enumerate(value, 1))
        yield from tables.pack(((n, text) for n, text in items if text), "items", section=section)
        return
    if not isinstance(value, dict):
        yield Block(_scalar(value), None, section)
        return
    small = {k: v for k, v in value.items() if not _is_large(v)}
    if text := "\n".join(f"{name}: {v}" for name, v in _flat(small, "")):
        yield Block(text, None, section)
    for key, inner in value.items():
        if key not in small:
            yield from _blocks(inner, (*section, " ".join(key.split())))


def _is_large(value: Any) -> bool:
    return isinstance(value, dict | list) and _leaves(value, _SMALL + 1) > _SMALL


def _leaves(value: Any, most: int) -> int:
    """How many values there are, counted up to `most`."""
    if not isinstance(value, dict | list):
        return 1
    count = 0
    for inner in value.values() if isinstance(value, dict) else value:
        count += _leaves(inner, most - count)
        if count >= most:
            break
    return count


def _record(value: Any) -> str:
    """A record on one line, or on several where a value is long."""
    fields = list(_flat(value, ""))
    long = any(len(v) > _LONG or "\n" in v for _, v in fields)
    return ("\n" if long else "; ").join(f"{name}: {v}" if name else v for name, v in fields)


def _flat(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """Path and text of each value that is not empty; a list of plain values is one."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        if any(isinstance(inner, dict | list) for inner in value):
            for number, inner in enumerate(value, 1):
                yield from _flat(inner, f"{name}[{number}]")
        elif text := ", ".join(filter(None, map(_scalar, value))):
            yield name, text
    elif text := _scalar(value):
        yield name, text


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value).strip()
