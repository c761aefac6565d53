"""Calls of tools, read from JSON while it is generated."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CallPart:
    """A part of a call as it is generated: its name first, then its arguments piece by piece.

    Args:
        index: which call of the answer, from 0.
        name: only in the first part.
        arguments: JSON text, to be joined.
    """

    index: int
    name: str | None
    arguments: str


class CallReader:
    """Reads a list of calls, or one call, from JSON text that comes in pieces."""

    def __init__(self) -> None:
        self._index = -1
        self._open = ""  # brackets inside the current call
        self._in_string = self._escaped = False
        self._key: str | None = None
        self._text = ""  # of the key, or of a value that is not passed on as it comes
        self._name: str | None = None
        self._early = ""  # arguments that came before the name
        self._complete = True

    def push(self, text: str) -> list[CallPart]:
        """The parts of calls that `text` adds."""
        parts = [part for character in text for part in self._take(character)]
        return _merged(parts)

    def finish(self) -> list[CallPart]:
        """A part that spoils the arguments of a call that was cut off.

        LangChain completes half a JSON text as well as it can when it joins chunks, and an agent
        would go on with half a file name. A bracket that closes what was never opened prevents it.
        """
        if self._complete or self._name is None:
            return []
        text = "\\" * self._escaped + '"' * self._in_string
        inner = self._open[1:]
        return [CallPart(self._index, None, text + ("}" if inner.endswith("[") else "]"))]

    def _take(self, c: str) -> Iterator[CallPart]:
        if not self._open:
            if c == "{":
                self._index, self._open, self._complete = self._index + 1, c, False
                self._key, self._text, self._name, self._early = None, "", None, ""
            return
        if self._in_string:
            self._in_string = self._escaped or c != '"'
            self._escaped = c == "\\" and not self._escaped
        elif c == '"':
            self._in_string = True
        elif c.isspace():  # layout means nothing outside of strings
            return
        elif self._key is None and c == ":":
            self._key, self._text = _loaded(self._text), ""
            return
        elif len(self._open) == 1 and c in ",}":
            yield from self._end_value()
            self._open = "" if c == "}" else self._open
            return
        elif c in "{[":
            self._open += c
        elif c in "}]":
            self._open = self._open[:-1]
            self._complete |= self._key == "arguments" and len(self._open) == 1
        if self._key != "arguments":
            self._text += c
        elif self._name is None:
            self._early += c
        else:
            yield CallPart(self._index, None, c)

    def _end_value(self) -> Iterator[CallPart]:
        if self._key == "name":
            self._name = _loaded(self._text)
            yield CallPart(self._index, self._name, self._early)
        self._key, self._text = None, ""


def _loaded(text: str) -> str:
    try:
        return str(json.loads(text))
    except ValueError:
        return text


def _merged(parts: Sequence[CallPart]) -> list[CallPart]:
    merged: list[CallPart] = []
    for part in parts:
        last = merged[-1] if merged else None
        if last is not None and part.name is None and last.index == part.index:
            merged[-1] = CallPart(last.index, last.name, last.arguments + part.arguments)
        else:
            merged.append(part)
    return merged
