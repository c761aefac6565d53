"""The ledger: which documents there are, what became of each, and their passages.

It is the truth; the vector index is made from it without parsing or embedding again. A document's
new version replaces the old in one transaction, its keywords with it.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mixtral_rag.ingest.split import Window
from mixtral_rag.store.database import Database
from mixtral_rag.store.keywords import Keywords
from mixtral_rag.types import Passage


@dataclass(frozen=True, slots=True)
class Failure:
    """Why the newest content of a file could not be read.

    `sha256` names that content, and `recipe` how it was read; both are empty where not even its
    bytes could be had, so that it is tried again every time.
    """

    reason: str
    sha256: str = ""
    recipe: str = ""
    size: int = 0
    mtime_ns: int = 0


@dataclass(frozen=True, slots=True)
class Document:
    """What the ledger knows of a document.

    Args:
        path: the file, or the source a program gave.
        title: as the document says, else empty.
        sha256: of the content that is stored; empty when none ever was.
        recipe: how that content was read; content read another way is read again.
        size: of the file, bytes.
        mtime_ns: of the file.
        n_pages: pages, None where the format has none.
        pages: numbers of pages that did not simply give their text, by what became of them.
        problems: parts that could not be read.
        encoding: of a text file.
        failure: why the newest content could not be read.
        ingested_at: seconds since 1970, None when nothing is stored.
        n_passages: passages stored.
        is_file: False for what a program gave.
        metadata: what a program gave along, anything that JSON can hold; None for a file.
    """

    path: Path
    title: str = ""
    sha256: str = ""
    recipe: str = ""
    size: int = 0
    mtime_ns: int = 0
    n_pages: int | None = None
    pages: dict[str, list[int]] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    encoding: str = ""
    failure: Failure | None = None
    ingested_at: float | None = None
    n_passages: int = 0
    is_file: bool = True
    metadata: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """Keys of passages that are new, that have another vector now, and that are gone."""

    new: Sequence[str] = ()
    other: Sequence[str] = ()
    gone: Sequence[str] = ()


class Ledger:
    """Documents and passages in `db`; changes happen within its transactions."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.keywords = Keywords(db)

    @property
    def generation(self) -> int:
        """Grows with every change of passages, in the same transaction."""
        return int(self.db.get("generation") or 0)

    def _grow(self) -> None:
        self.db.set("generation", str(self.generation + 1))

    def documents(self) -> list[Document]:
        """Every document, by path."""
        rows = self.db.select(
            "SELECT path, title, sha256, recipe, size, mtime_ns, n_pages, pages, problems,"
            " encoding, error, error_sha256, error_recipe, error_size, error_mtime_ns,"
            " ingested_at, is_file, (SELECT count(*) FROM passages p WHERE p.document_id = d.id),"
            " metadata"
            " FROM documents d ORDER BY path"
        )
        return [_document(row) for row in rows]

    def put(self, document: Document, windows: Sequence[Window], hashes: Sequence[bytes]) -> Change:
        """Put a document's new version in place of the old.

        Args:
            document: what to note of it.
            windows: its passages.
            hashes: for each, that of its embedded text, which the table of embeddings holds.
        """
        self._grow()
        d = document
        (key,) = self.db.execute(
            "INSERT INTO documents (path, is_file, title, encoding, sha256, recipe, size, mtime_ns,"
            " n_pages, pages, problems, ingested_at, metadata) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)"
            " ON CONFLICT (path) DO UPDATE SET is_file = excluded.is_file, title = excluded.title,"
            " encoding = excluded.encoding, sha256 = excluded.sha256, recipe = excluded.recipe,"
            " size = excluded.size, mtime_ns = excluded.mtime_ns, n_pages = excluded.n_pages,"
            " pages = excluded.pages, problems = excluded.problems,"
            " ingested_at = excluded.ingested_at, metadata = excluded.metadata, error = NULL,"
            " error_sha256 = NULL, error_recipe = NULL, error_size = NULL, error_mtime_ns = NULL"
            " RETURNING id",
            os.fsencode(d.path), d.is_file, d.title, d.encoding, d.sha256, d.recipe, d.size,
            d.mtime_ns, d.n_pages, json.dumps(d.pages), json.dumps(d.problems), time.time(),
            "" if d.metadata is None else json.dumps(d.metadata, default=str),
        ).fetchone()  # fmt: skip
        old = self._vectors_of(key)
        new = {_passage_key(d.path, i, w): (i, w, h) for i, (w, h) in
               enumerate(zip(windows, hashes, strict=True))}  # fmt: skip
        gone = [k for k in old if k not in new]
        self._drop(gone)
        self._insert(key, {k: row for k, row in new.items() if k not in old})
        self._update({k: row for k, row in new.items() if k in old})
        other = [k for k, (_, _, h) in new.items() if old.get(k, h) != h]
        return Change([k for k in new if k not in old], other, gone)

    def _vectors_of(self, document_id: int) -> dict[str, bytes]:
        """The keys of a document's passages, with the hashes of their embedded texts."""
        rows = self.db.execute(
            "SELECT p.key, e.hash FROM passages p JOIN embeddings e ON e.id = p.embedding_id"
            " WHERE p.document_id = ?",
            document_id,
        )
        return dict(rows.fetchall())

    def _insert(self, document_id: int, rows: dict[str, tuple[int, Window, bytes]]) -> None:
        self.db.execute_many(
            "INSERT INTO passages (key, document_id, position, text, first_page, last_page,"
            " section, embedding_id)"
            " SELECT ?, ?, ?, ?, ?, ?, ?, id FROM embeddings WHERE hash = ?",
            (
                (key, document_id, i, w.text, *(w.pages or (None, None)),
                 json.dumps(w.section, ensure_ascii=False), h)
                for key, (i, w, h) in rows.items()
            ),
        )  # fmt: skip
        self.keywords.add(list(rows))

    def _update(self, rows: dict[str, tuple[int, Window, bytes]]) -> None:
        """What may differ under the same key: pages, and headings that were embedded along."""
        self.db.execute_many(
            "UPDATE passages SET first_page = ?, last_page = ?,"
            " embedding_id = (SELECT id FROM embeddings WHERE hash = ?) WHERE key = ?",
            ((*(w.pages or (None, None)), h, key) for key, (_, w, h) in rows.items()),
        )

    def _drop(self, keys: Sequence[str]) -> None:
        self.keywords.drop(keys)
        self.db.execute_many("DELETE FROM passages WHERE key = ?", ((k,) for k in keys))

    def touch(self, path: Path, size: int, mtime_ns: int) -> None:
        """Note a new time of a file whose content is the one that is stored."""
        self.db.execute(
            "UPDATE documents SET size = ?, mtime_ns = ?, error = NULL, error_sha256 = NULL,"
            " error_recipe = NULL, error_size = NULL, error_mtime_ns = NULL WHERE path = ?",
            size, mtime_ns, os.fsencode(path),
        )  # fmt: skip

    def fail(self, path: Path, failure: Failure) -> None:
        """Note why a file could not be read; its last good version stays."""
        f = failure
        self.db.execute(
            "INSERT INTO documents (path, error, error_sha256, error_recipe, error_size,"
            " error_mtime_ns) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (path) DO UPDATE SET"
            " error = excluded.error, error_sha256 = excluded.error_sha256,"
            " error_recipe = excluded.error_recipe, error_size = excluded.error_size,"
            " error_mtime_ns = excluded.error_mtime_ns",
            os.fsencode(path), f.reason, f.sha256, f.recipe, f.size, f.mtime_ns,
        )  # fmt: skip

    def remove(self, paths: Iterable[Path]) -> list[str]:
        """Remove documents; returns the keys of their passages."""
        self._grow()
        gone: list[str] = []
        for path in paths:
            row = self.db.execute("SELECT id FROM documents WHERE path = ?", os.fsencode(path))
            for (key,) in row.fetchall():
                keys = list(self._vectors_of(key))
                self._drop(keys)
                self.db.execute("DELETE FROM documents WHERE id = ?", key)
                gone += keys
        return gone

    def windows(self, path: Path) -> tuple[list[Window], list[bytes]]:
        """A document's passages in order, with the hashes of their embedded texts."""
        rows = self.db.select(
            "SELECT p.text, p.first_page, p.last_page, p.section, e.hash FROM passages p"
            " JOIN documents d ON d.id = p.document_id JOIN embeddings e ON e.id = p.embedding_id"
            " WHERE d.path = ? ORDER BY p.position",
            os.fsencode(path),
        ).fetchall()
        windows = [Window(r[0], _pages(r[1], r[2]), tuple(json.loads(r[3]))) for r in rows]
        return windows, [r[4] for r in rows]

    def count(self, documents: Sequence[int] | None = None) -> int:
        """Number of passages, of some documents by their ids or of all."""
        return self._total("count(*)", documents)

    def passages(
        self,
        keys: Sequence[str],
        scores: Mapping[str, float] = MappingProxyType({}),
        keyword_scores: Mapping[str, float] = MappingProxyType({}),
    ) -> dict[str, Passage]:
        """Passages by key, with scores; keys that are not (any more) in the ledger are left out."""
        rows = self.db.select(
            f"{_PASSAGES} WHERE p.key IN (SELECT value FROM json_each(?))",  # noqa: S608 - a constant
            json.dumps(list(keys)),
        )
        return {
            row[0]: _passage(row, scores.get(row[0]), keyword_scores.get(row[0])) for row in rows
        }

    def near(self, path: str, position: int, distance: int) -> list[Passage]:
        """The passages of a document up to `distance` places before and after one, in order."""
        rows = self.db.select(
            _PASSAGES
            + " WHERE d.path = ? AND p.position BETWEEN ? AND ? ORDER BY p.position",
            os.fsencode(path), position - distance, position + distance,
        )  # fmt: skip
        return [_passage(row) for row in rows]

    def n_characters(self, documents: Sequence[int] | None = None) -> int:
        """Characters of the passages of some documents, or of all; reads them all."""
        return self._total("total(length(p.text))", documents)

    def _total(self, what: str, documents: Sequence[int] | None) -> int:
        where, values = _of(documents)
        return int(self.db.select(f"SELECT {what} FROM passages p{where}", *values).fetchone()[0])  # noqa: S608 - constants

    def all_passages(self, documents: Sequence[int] | None = None) -> list[Passage]:
        """Every passage of some documents, or of all, by document and place."""
        where, values = _of(documents)
        rows = self.db.select(f"{_PASSAGES}{where} ORDER BY d.path, p.position", *values)
        return [_passage(row) for row in rows]

    def keys(self) -> Iterator[str]:
        """The key of every passage."""
        return (row[0] for row in self.db.select("SELECT key FROM passages"))


_PASSAGES = (
    "SELECT p.key, d.path, d.title, p.text, p.position, p.first_page, p.last_page, p.section,"
    " d.metadata FROM passages p JOIN documents d ON d.id = p.document_id"
)


def _of(documents: Sequence[int] | None) -> tuple[str, tuple[str, ...]]:
    """What follows a query of passages to take those of some documents."""
    if documents is None:
        return "", ()
    within = " WHERE p.document_id IN (SELECT value FROM json_each(?))"
    return within, (json.dumps(list(documents)),)


def _path(stored: object) -> Path:
    assert isinstance(stored, bytes)
    return Path(os.fsdecode(stored))


def _pages(first: int | None, last: int | None) -> tuple[int, int] | None:
    return None if first is None or last is None else (first, last)


def _passage_key(path: Path, position: int, window: Window) -> str:
    """The same as long as the passage stands at its place with its text and headings."""
    parts = (str(path), str(position), "\x1f".join(window.section), window.text)
    return hashlib.sha256("\x1e".join(parts).encode("utf-8", "replace")).hexdigest()[:32]


def _document(row: Sequence[object]) -> Document:
    r: list[object] = list(row)
    failure = None
    if r[10] is not None:
        failure = Failure(str(r[10]), str(r[11] or ""), str(r[12] or ""), _int(r[13]), _int(r[14]))
    return Document(
        path=_path(r[0]),
        title=str(r[1]),
        sha256=str(r[2]),
        recipe=str(r[3]),
        size=_int(r[4]),
        mtime_ns=_int(r[5]),
        n_pages=None if r[6] is None else _int(r[6]),
        pages=json.loads(str(r[7])),
        problems=tuple(json.loads(str(r[8]))),
        encoding=str(r[9]),
        failure=failure,
        ingested_at=None if r[15] is None else float(str(r[15])),
        is_file=bool(r[16]),
        n_passages=_int(r[17]),
        metadata=json.loads(str(r[18])) if r[18] else None,
    )


def _int(value: object) -> int:
    return int(str(value or 0))


def _passage(
    row: Sequence[object], score: float | None = None, keyword_score: float | None = None
) -> Passage:
    key, stored, title, text, position, first, last, section, metadata = row
    path = os.fsdecode(stored)  # type: ignore[arg-type]  # a BLOB
    return Passage(
        id=str(key),
        path=path,
        title=str(title) or os.path.basename(path),
        text=str(text),
        position=_int(position),
        pages=None if first is None else (_int(first), _int(last)),
        section=() if section == "[]" else tuple(json.loads(str(section))),
        score=score,
        keyword_score=keyword_score,
        metadata=json.loads(str(metadata)) if metadata else None,
    )
