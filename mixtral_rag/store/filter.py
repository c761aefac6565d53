"""Which documents a question is asked of."""

import datetime as dt
import fnmatch
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixtral_rag.errors import SettingsError
from mixtral_rag.store.database import Database


@dataclass(frozen=True, slots=True)
class Filter:
    """What documents must be to be searched; whatever is given must hold.

    Args:
        paths: any of these: a file, a folder with all that is in it, or a pattern of file names or
            paths such as `*.pdf` or `contracts/2024*`.
        types: any of these endings of file names, such as `pdf`.
        since: changed on this day or later, in local time; what a program gave counts from when it
            was ingested.
        until: changed on this day or earlier.
        metadata: of documents that a program gave: each of these names with this value.
    """

    paths: Sequence[str | Path] = ()
    types: Sequence[str] = ()
    since: dt.date | None = None
    until: dt.date | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what could never hold."""
        for name in ("paths", "types"):
            if isinstance(getattr(self, name), str | Path):
                raise SettingsError(f"{name} of a filter must be a list")
        if self.since and self.until and self.since > self.until:
            raise SettingsError(f"nothing is since {self.since} and until {self.until}")

    def __bool__(self) -> bool:
        """Whether it leaves anything out."""
        return bool(self.paths or self.types or self.since or self.until or self.metadata)

    def __str__(self) -> str:
        """What is wanted, in words: `in a/b, *.md; type pdf; since 2024-05-01`."""
        pairs = ", ".join(f"{name} is {value}" for name, value in self.metadata.items())
        parts = (("in", ", ".join(map(str, self.paths))), ("type", ", ".join(self.types)),
                 ("since", self.since), ("until", self.until), ("with", pairs))  # fmt: skip
        return "; ".join(f"{word} {value}" for word, value in parts if value)

    def documents(self, db: Database) -> list[int]:
        """The ids of the documents that pass."""
        rows = db.select("SELECT id, path, mtime_ns, ingested_at, metadata FROM documents")
        return [r[0] for r in rows if self._passes(os.fsdecode(r[1]), r[2], r[3], r[4])]

    def _passes(self, path: str, mtime_ns: int, ingested_at: float, metadata: str) -> bool:
        if self.paths and not any(_matches(path, str(p)) for p in self.paths):
            return False
        ending = path.rpartition(".")[2].lower()
        if self.types and ending not in {t.lower().lstrip(".") for t in self.types}:
            return False
        if self.since or self.until:
            changed = mtime_ns / 1e9 if mtime_ns else ingested_at or 0.0
            day = dt.datetime.fromtimestamp(changed).date()
            if (self.since and day < self.since) or (self.until and day > self.until):
                return False
        held = json.loads(metadata) if metadata else {}
        return all(name in held and _equal(held[name], v) for name, v in self.metadata.items())


def _equal(held: Any, wanted: Any) -> bool:
    """A text also equals a number that is written so: a command line has only texts."""
    return bool(held == wanted) or (isinstance(wanted, str) and str(held) == wanted)


def _matches(path: str, wanted: str) -> bool:
    whole = os.path.abspath(os.path.expanduser(wanted))
    if path in (wanted, whole) or path.startswith(whole.rstrip(os.sep) + os.sep):
        return True
    name = os.path.basename(path)
    if os.sep not in wanted:
        return name == wanted or fnmatch.fnmatch(name, wanted)
    return fnmatch.fnmatch(path, whole)
