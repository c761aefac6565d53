"""The SQLite database of a store: opening, transactions, and values of the store as a whole.

WAL with `synchronous=FULL` keeps what was committed through a crash or a power loss.
"""

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from mixtral_rag.errors import StoreError

_VERSION = "2"
KEYWORDS_TABLE = "CREATE VIRTUAL TABLE IF NOT EXISTS keywords USING fts5 (terms, content = '')"
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS documents (
    id INTEGER PRIMARY KEY,
    path BLOB NOT NULL UNIQUE,  -- the bytes the system uses; not every name is UTF-8
    is_file INTEGER NOT NULL DEFAULT 1,
    title TEXT NOT NULL DEFAULT '',
    encoding TEXT NOT NULL DEFAULT '',
    sha256 TEXT NOT NULL DEFAULT '',
    recipe TEXT NOT NULL DEFAULT '',
    size INTEGER NOT NULL DEFAULT 0,
    mtime_ns INTEGER NOT NULL DEFAULT 0,
    n_pages INTEGER,
    pages TEXT NOT NULL DEFAULT '{{}}',
    problems TEXT NOT NULL DEFAULT '[]',
    ingested_at REAL,
    error TEXT,  -- why the newest content could not be read, and which content that was
    error_sha256 TEXT,
    error_recipe TEXT,
    error_size INTEGER,
    error_mtime_ns INTEGER,
    metadata TEXT NOT NULL DEFAULT ''  -- JSON, as a program gave it
);
CREATE INDEX IF NOT EXISTS documents_sha256 ON documents (sha256);
CREATE TABLE IF NOT EXISTS embeddings (
    id INTEGER PRIMARY KEY,
    hash BLOB NOT NULL UNIQUE,  -- of the text that was embedded
    vector BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS passages (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    document_id INTEGER NOT NULL REFERENCES documents (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    text TEXT NOT NULL,
    first_page INTEGER,
    last_page INTEGER,
    section TEXT NOT NULL,
    embedding_id INTEGER NOT NULL REFERENCES embeddings (id)
);
CREATE INDEX IF NOT EXISTS passages_document ON passages (document_id, position);
CREATE INDEX IF NOT EXISTS passages_embedding ON passages (embedding_id);
{KEYWORDS_TABLE};
"""


WAY_OUT = (
    "run mixtral-rag verify --repair; if the ledger itself is damaged, put back a copy of it, or "
    "move the store away and ingest again"
)


class Rows:
    """What a query found; fetching raises what `Database.select` does."""

    def __init__(
        self, cursor: sqlite3.Cursor, ours: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._cursor, self._ours = cursor, ours

    def fetchone(self) -> Any:
        """The next row; None when there is none."""
        with self._ours():
            return self._cursor.fetchone()

    def fetchmany(self, size: int) -> list[Any]:
        """The next rows, fewer at the end."""
        with self._ours():
            return self._cursor.fetchmany(size)

    def fetchall(self) -> list[Any]:
        """All that are left."""
        with self._ours():
            return self._cursor.fetchall()

    def __iter__(self) -> Iterator[Any]:
        while rows := self.fetchmany(500):
            yield from rows


class Database:
    """The database at `path`; threads wait for one another.

    Raises:
        StoreError: the file is no database of this version, or cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, threading.RLock()
        try:
            self._db = sqlite3.connect(path, check_same_thread=False, timeout=30)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA foreign_keys = ON")
            version = self._stored_version()
            if version is None:
                self._db.executescript(f"BEGIN IMMEDIATE;{_SCHEMA}")
                self._db.execute("INSERT OR IGNORE INTO meta VALUES ('version', ?)", (_VERSION,))
                self._db.commit()
            elif version == _VERSION:
                self._add_new_columns()
        except sqlite3.DatabaseError as error:
            raise StoreError(
                f"{path} cannot be used as a store: {error}; choose another folder with --store, "
                "or move this one away and ingest again"
            ) from error
        if version not in (None, _VERSION):
            self.close()
            raise StoreError(
                f"{path} was made by another version of this program (its format is {version}, "
                f"this one's {_VERSION}); move the folder away and ingest again"
            )

    def _stored_version(self) -> str | None:
        if not self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone():
            return None
        row = self._db.execute("SELECT value FROM meta WHERE key = 'version'").fetchone()
        return row[0] if row else None

    def _add_new_columns(self) -> None:
        """What stores made before `metadata` was kept do not have."""
        columns = [row[1] for row in self._db.execute("PRAGMA table_info(documents)")]
        if "metadata" not in columns:
            with contextlib.suppress(sqlite3.OperationalError):  # another process was quicker
                self._db.execute(
                    "ALTER TABLE documents ADD COLUMN metadata TEXT NOT NULL DEFAULT ''"
                )

    def close(self) -> None:
        """Close the database, once no thread is reading it."""
        with self._lock:
            self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All changes within, or none.

        Raises:
            StoreError: the database refuses, for want of room on the disk for instance.
        """
        with self._ours(), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            yield

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """All that is read within is of one moment, whatever other processes commit meanwhile."""
        with self._ours():
            if self._db.in_transaction:
                yield
                return
            self._db.execute("BEGIN")
            try:
                yield
            finally:
                self._db.rollback()

    def select(self, sql: str, *values: object) -> "Rows":
        """Run a query.

        Raises:
            StoreError: the database is damaged or cannot be read.
        """
        with self._ours():
            return Rows(self._db.execute(sql, values), self._ours)

    def execute(self, sql: str, *values: object) -> sqlite3.Cursor:
        """Change something; within a transaction."""
        return self._db.execute(sql, values)

    def execute_many(self, sql: str, rows: Iterable[tuple[object, ...]]) -> None:
        """Change something for every row; within a transaction."""
        self._db.executemany(sql, rows)

    @contextmanager
    def _ours(self) -> Iterator[None]:
        """One thread at a time, and errors of SQLite as our own, with the way out."""
        try:
            with self._lock:
                yield
        except sqlite3.OperationalError as error:
            full = "; is the disk full? Free some room and run it again"
            way_out = full if "full" in str(error) or "I/O" in str(error) else ""
            raise StoreError(
                f"{self.path}: {error}; what was stored before is kept{way_out}"
            ) from error
        except sqlite3.Error as error:
            raise StoreError(f"{self.path} is damaged: {error}; {WAY_OUT}") from error

    def get(self, key: str) -> str | None:
        """A value of the store as a whole."""
        row = self.select("SELECT value FROM meta WHERE key = ?", key).fetchone()
        return row[0] if row else None

    def set(self, key: str, value: str) -> None:
        """Set a value of the store as a whole; within a transaction."""
        self.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", key, value)

    def damage(self) -> str | None:
        """What SQLite's own check finds wrong with the file; None when nothing is."""
        try:
            rows = self._db.execute("PRAGMA integrity_check(3)").fetchall()
        except sqlite3.Error as error:
            return str(error)
        # From SQLite 3.44 on it looks into the keyword index, too, which can be made anew.
        found = [str(row[0]).splitlines()[-1] for row in rows if " FTS5 table " not in row[0]]
        return "; ".join(found) if found not in ([], ["ok"]) else None
