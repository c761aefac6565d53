"""The language of the command line: English, or Chinese by a catalogue of whole messages.

Every message is made in English, where it arises; it is translated where it is printed. In the
catalogue a message has `{}` where any value goes, `{#}` where a number goes and `{@}` where a
number and a word go, such as `2 pages`. Its translation has `{1}` for the first value as it is,
`{1!}` for a value that is itself a message, and `{1,}` for a list of such. What the catalogue does
not know stays as it is.
"""

import functools
import json
import os
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mixtral_rag.types import Language

VARIABLE = "MIXTRAL_RAG_LANGUAGE"
CATALOGUE = Path(__file__).parent / "data" / "zh.json"

_HOLE = re.compile(r"\{([#@]?)\}")
_PLACE = re.compile(r"\{(\d+)([!,]?)\}")
_VALUES = {
    "": re.compile(r".*", re.DOTALL),
    "#": re.compile(r" *[\d.,]*\d"),
    "@": re.compile(r" *[\d.,]*\d [a-zA-Z ]+"),
}
_LONGEST, _DEEPEST = 20_000, 4  # no message of ours comes near them


def language() -> "Language":
    """The language of messages: `MIXTRAL_RAG_LANGUAGE`, else the locale; English by default."""
    for name in (VARIABLE, "LC_ALL", "LC_MESSAGES", "LANG"):  # the locale as POSIX orders it
        if value := os.environ.get(name):
            return "zh" if value.lower().startswith("zh") else "en"
    return "en"


def translated(text: str) -> str:
    """A whole message in the language of messages; what the catalogue does not know as it is."""
    return text if language() == "en" else _translated(text)


def listed(messages: Iterable[str]) -> str:
    """Several messages in one line, in the language of messages."""
    return (", " if language() == "en" else "，").join(map(translated, messages))


def width_of(text: str) -> int:
    """How many columns of a terminal a text takes: Chinese characters take two."""
    return sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def padded(text: str, width: int) -> str:
    """The text with blanks behind it, up to `width` columns of a terminal."""
    return text + " " * (width - width_of(text))


@dataclass(frozen=True, slots=True)
class _Entry:
    literals: tuple[str, ...]  # the text before, between and after the holes
    marks: tuple[str, ...]  # of the holes: what may stand there
    chinese: str

    def values(self, text: str) -> list[str] | None:
        """What stands in the holes, each as short as can be; None when the text differs."""
        first, *between, last = self.literals
        at, end = len(first), len(text) - len(last)
        if at > end or not text.startswith(first) or not text.endswith(last):
            return None
        found = []
        for literal in between:
            place = text.find(literal, at, end)
            if place < 0:
                return None
            found.append(text[at:place])
            at = place + len(literal)
        found.append(text[at:end])
        fits = all(_VALUES[m].fullmatch(v) for m, v in zip(self.marks, found, strict=True))
        return found if fits else None


@functools.cache
def _catalogue() -> tuple[dict[str, str], list[_Entry]]:
    """Texts without holes, and those with them, the more telling first."""
    exact: dict[str, str] = {}
    entries: list[_Entry] = []
    for english, chinese in json.loads(CATALOGUE.read_text("utf-8")).items():
        pieces = _HOLE.split(english)  # literal, mark, literal, mark, ... literal
        if len(pieces) == 1:
            exact[english] = chinese
        else:
            entries.append(_Entry(tuple(pieces[::2]), tuple(pieces[1::2]), chinese))
    entries.sort(key=lambda entry: -sum(map(len, entry.literals)))
    return exact, entries


def _translated(text: str, depth: int = 0) -> str:
    core = text.strip()
    if not core or len(core) > _LONGEST or depth > _DEEPEST:
        return text
    exact, entries = _catalogue()
    start = text.index(core)
    before, after = text[:start], text[start + len(core) :]
    if (chinese := exact.get(core)) is not None:
        return before + chinese + after
    for entry in entries:
        if (values := entry.values(core)) is not None:
            return before + _filled(entry.chinese, values, depth + 1) + after
    return text


def _filled(chinese: str, values: list[str], depth: int) -> str:
    def put(place: re.Match[str]) -> str:
        value = values[int(place[1]) - 1]
        if place[2] == "!":
            return _translated(value, depth)
        if place[2] == ",":
            return "，".join(_translated(part, depth) for part in value.split(", "))
        return value

    return _PLACE.sub(put, chinese)
