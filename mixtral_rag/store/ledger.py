"""The ledger: one SQLite database that holds documents, passages and their vectors.

It is the truth; the vector index can be made anew from it without parsing or embedding again. A
document's new version replaces the old in one transaction. WAL with `synchronous=FULL` keeps what
was committed through a crash or a power loss.
"""

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mixtral_rag.embeddings import Vectors
from mixtral_rag.errors import StoreError
from mixtral_rag.ingest.split import Window
from mixtral_rag.types import Passage

_VERSION = "1"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS documents (
    id INTEGER PRIMARY KEY,
    path BLOB NOT NULL UNIQUE,  -- the bytes the system uses; not every name is UTF-8
    title TEXT NOT NULL DEFAULT '',
    sha256 TEXT NOT NULL DEFAULT '',
    size INTEGER NOT NULL DEFAULT 0,
    mtime_ns INTEGER NOT NULL DEFAULT 0,
    n_pages INTEGER,
    empty_pages TEXT NOT NULL DEFAULT '[]',
    error TEXT,
    ingested_at REAL
);
CREATE TABLE IF NOT EXISTS passages (
    id TEXT PRIMARY KEY,
    document_id INTEGER NOT NULL REFERENCES documents (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    text TEXT NOT NULL,
    first_page INTEGER,
    last_page INTEGER,
    section TEXT NOT NULL,
    vector BLOB NOT NULL,
    UNIQUE (document_id, position)
);
"""


@dataclass(frozen=True, slots=True)
class Document:
    """What the ledger knows of a file. `error` is why its newest version could not be read."""

    path: Path
    title: str
    sha256: str
    size: int
    mtime_ns: int
    n_pages: int | None
    empty_pages: tuple[int, ...]
    error: str | None
    ingested_at: float | None
    n_passages: int


class Ledger:
    """The database at `path`; a connection is for one thread at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._db = sqlite3.connect(path, check_same_thread=False, timeout=30)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA foreign_keys = ON")
            self._db.executescript(_SCHEMA)
            with self.transaction():
                self._db.execute("INSERT OR IGNORE INTO meta VALUES ('version', ?)", (_VERSION,))
        except sqlite3.DatabaseError as error:
            raise StoreError(
                f"{path} cannot be used as a store: {error}; choose another folder with --store, "
                "or move this one away and ingest again"
            ) from error
        version = self.get("version")
        if version != _VERSION:
            raise StoreError(f"{path} was made by another version of this program ({version})")

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All changes within, or none.

        Raises:
            StoreError: the database refuses, for want of room on the disk for instance.
        """
        try:
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                yield
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def _select(self, sql: str, *values: object) -> sqlite3.Cursor:
        try:
            return self._db.execute(sql, values)
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def _failed(self, error: sqlite3.Error) -> StoreError:
        return StoreError(f"{self.path}: {error}; what was stored before is kept")

    def get(self, key: str) -> str | None:
        """A value of the store as a whole."""
        row = self._select("SELECT value FROM meta WHERE key = ?", key).fetchone()
        return row[0] if row else None

    def set(self, key: str, value: str) -> None:
        """Set a value of the store as a whole; within a transaction."""
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    @property
    def generation(self) -> int:
        """Grows with every change of passages, in the same transaction."""
        return int(self.get("generation") or 0)

    def documents(self) -> list[Document]:
        """Every document, by path."""
        rows = self._select(
            "SELECT path, title, sha256, size, mtime_ns, n_pages, empty_pages, error, ingested_at,"
            " (SELECT count(*) FROM passages p WHERE p.document_id = d.id)"
            " FROM documents d ORDER BY path"
        )
        return [
            Document(
                path=_path(r[0]),
                title=r[1],
                sha256=r[2],
                size=r[3],
                mtime_ns=r[4],
                n_pages=r[5],
                empty_pages=tuple(json.loads(r[6])),
                error=r[7],
                ingested_at=r[8],
                n_passages=r[9],
            )
            for r in rows
        ]

    def replace(
        self, document: Document, windows: Sequence[Window], vectors: Vectors
    ) -> tuple[list[str], list[str]]:
        """Put a document's new version in place of the old; within a transaction.

        Returns the passage IDs of the new version, and those of the old that are gone.
        """
        self.set("generation", str(self.generation + 1))
        row = self._db.execute(
            "INSERT INTO documents (path, title, sha256, size, mtime_ns, n_pages, empty_pages,"
            " ingested_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (path) DO UPDATE SET title = excluded.title, sha256 = excluded.sha256,"
            " size = excluded.size, mtime_ns = excluded.mtime_ns, n_pages = excluded.n_pages,"
            " empty_pages = excluded.empty_pages, ingested_at = excluded.ingested_at, error = NULL"
            " RETURNING id",
            (
                os.fsencode(document.path), document.title, document.sha256, document.size,
                document.mtime_ns, document.n_pages, json.dumps(document.empty_pages), time.time(),
            ),
        ).fetchone()  # fmt: skip
        old = self._passage_ids(row[0])
        self._db.execute("DELETE FROM passages WHERE document_id = ?", row)
        new = [_passage_id(document.path, i, w) for i, w in enumerate(windows)]
        self._db.executemany(
            "INSERT INTO passages VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (key, row[0], i, w.text, *(w.pages or (None, None)),
                 json.dumps(w.section, ensure_ascii=False), vector.astype("<f4").tobytes())
                for i, (key, w, vector) in enumerate(zip(new, windows, vectors, strict=True))
            ),
        )  # fmt: skip
        return new, sorted(set(old) - set(new))

    def touch(self, path: Path, size: int, mtime_ns: int) -> None:
        """Note a new time of a file whose content is the same."""
        with self.transaction():
            self._db.execute(
                "UPDATE documents SET size = ?, mtime_ns = ?, error = NULL WHERE path = ?",
                (size, mtime_ns, os.fsencode(path)),
            )

    def fail(self, path: Path, error: str) -> None:
        """Note why a file could not be read; its last good version stays."""
        with self.transaction():
            self._db.execute(
                "INSERT INTO documents (path, error) VALUES (?, ?)"
                " ON CONFLICT (path) DO UPDATE SET error = excluded.error",
                (os.fsencode(path), error),
            )

    def remove(self, paths: Iterable[Path]) -> list[str]:
        """Remove documents; within a transaction. Returns the IDs of their passages."""
        self.set("generation", str(self.generation + 1))
        gone: list[str] = []
        for path in paths:
            row = self._db.execute("SELECT id FROM documents WHERE path = ?", (os.fsencode(path),))
            for (key,) in row.fetchall():
                gone += self._passage_ids(key)
                self._db.execute("DELETE FROM documents WHERE id = ?", (key,))
        return gone

    def _passage_ids(self, document_id: int) -> list[str]:
        rows = self._db.execute("SELECT id FROM passages WHERE document_id = ?", (document_id,))
        return [key for (key,) in rows]

    def count(self) -> int:
        """Number of passages."""
        return int(self._select("SELECT count(*) FROM passages").fetchone()[0])

    def passages(self, ids: Sequence[str]) -> dict[str, Passage]:
        """Passages by ID; IDs that are not (any more) in the ledger are left out."""
        rows = self._select(
            "SELECT p.id, d.path, d.title, p.text, p.position, p.first_page, p.last_page, p.section"
            " FROM passages p JOIN documents d ON d.id = p.document_id"
            " WHERE p.id IN (SELECT value FROM json_each(?))",
            json.dumps(list(ids)),
        )
        return {r[0]: _passage(r) for r in rows}

    def vectors(self, batch: int = 1000) -> Iterator[tuple[list[str], Vectors]]:
        """Every passage ID with its vector, in batches."""
        cursor = self._select("SELECT id, vector FROM passages ORDER BY document_id, position")
        while rows := cursor.fetchmany(batch):
            vectors = np.stack([np.frombuffer(blob, "<f4") for _, blob in rows])
            yield [key for key, _ in rows], vectors


def _path(stored: object) -> Path:
    assert isinstance(stored, bytes)
    return Path(os.fsdecode(stored))


def _passage_id(path: Path, position: int, window: Window) -> str:
    """The same as long as the passage stands at its place with its text and heading."""
    parts = (str(path), str(position), "\x1f".join(window.section), window.text)
    return hashlib.sha256("\x1e".join(parts).encode("utf-8", "replace")).hexdigest()[:32]


def _passage(row: tuple[object, ...]) -> Passage:
    key, path, title, text, position, first, last, section = row
    return Passage(
        id=str(key),
        path=str(_path(path)),
        title=str(title) or _path(path).name,
        text=str(text),
        position=int(str(position)),
        pages=None if first is None else (int(str(first)), int(str(last))),
        section=tuple(json.loads(str(section))),
    )
