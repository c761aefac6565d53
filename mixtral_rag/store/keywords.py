"""The keyword index: SQLite FTS5 over the words of passages, in the ledger's own database.

So it changes in the same transactions as the passages. FTS5 has no words for Chinese; texts are cut
here, into lower-case words, single Chinese characters and pairs of neighbours, which on CMRC 2018
found more than a dictionary's words do. Only the index is stored, not the terms. For searching it
see `mixtral_rag.store.bm25`.
"""

import json
import sqlite3
from collections.abc import Iterable, Sequence

from mixtral_rag.language import keywords
from mixtral_rag.store.bm25 import indexed_text
from mixtral_rag.store.database import KEYWORDS_TABLE, Database

_BATCH = 1000
_PROBES = 20  # terms by which a passage is looked for when the index is verified
_VERSION_KEY, _VERSION = "keywords", "2"  # of how texts are cut


class Keywords:
    """Passages in `db` by their words; changes happen within its transactions."""

    def __init__(self, db: Database) -> None:
        self.db = db

    def add(self, keys: Sequence[str]) -> None:
        """Index passages that were just put into the ledger."""
        self.db.execute_many("INSERT INTO keywords (rowid, terms) VALUES (?, ?)", self._rows(keys))

    def drop(self, keys: Sequence[str]) -> None:
        """Take out passages that are about to leave the ledger."""
        rows = ((rowid, terms) for rowid, terms in self._rows(keys))
        self.db.execute_many(
            "INSERT INTO keywords (keywords, rowid, terms) VALUES ('delete', ?, ?)", rows
        )

    def _rows(self, keys: Sequence[str]) -> Iterable[tuple[int, str]]:
        for start in range(0, len(keys), _BATCH):
            rows = self.db.select(
                "SELECT id, section, text FROM passages"
                " WHERE key IN (SELECT value FROM json_each(?))",
                json.dumps(list(keys[start : start + _BATCH])),
            )
            yield from ((r[0], _terms(r[1], r[2])) for r in rows.fetchall())

    def rebuild(self) -> None:
        """Index every passage anew, in a table of its own making."""
        self._drop_table()
        self.db.execute(KEYWORDS_TABLE)
        rows = self.db.select("SELECT id, section, text FROM passages")
        while part := rows.fetchmany(_BATCH):
            self.db.execute_many(
                "INSERT INTO keywords (rowid, terms) VALUES (?, ?)",
                [(r[0], _terms(r[1], r[2])) for r in part],
            )
        self.db.set(_VERSION_KEY, _VERSION)

    def _drop_table(self) -> None:
        try:
            self.db.execute("DROP TABLE keywords")
        except sqlite3.DatabaseError:  # FTS5 does not even open a damaged table to drop it
            self.db.execute("PRAGMA writable_schema = ON")
            try:
                self.db.execute("DELETE FROM sqlite_master WHERE name = 'keywords'")
                for part in ("data", "idx", "docsize", "config"):
                    self.db.execute(f"DROP TABLE IF EXISTS keywords_{part}")
            finally:
                self.db.execute("PRAGMA writable_schema = RESET")

    def problem(self) -> str | None:
        """Compare the index with the ledger, passage by passage; None when they agree."""
        try:
            self.db.execute("INSERT INTO keywords (keywords) VALUES ('integrity-check')")
            ids = "SELECT id FROM passages", "SELECT id FROM keywords_docsize"
            lacking, extra = (
                len(self.db.execute(f"{a} EXCEPT {b}").fetchall()) for a, b in (ids, ids[::-1])
            )
            if lacking or extra:
                return f"lacks {lacking:,} passages of the ledger and has {extra:,} it should not"
            rows = self.db.execute("SELECT id, section, text FROM passages")
            missed = sum(not self._finds(*row) for row in rows)
        except sqlite3.DatabaseError as error:
            return f"fails: {error}"
        return f"does not find {missed:,} passages by their own words" if missed else None

    def _finds(self, rowid: int, section: str, text: str) -> bool:
        terms = _terms(section, text).split()
        some = dict.fromkeys(terms[:: max(1, len(terms) // _PROBES)])
        if not some:
            return True
        query = " AND ".join(f'"{term}"' for term in some)
        sql = "SELECT 1 FROM keywords WHERE keywords MATCH ? AND rowid = ?"
        return self.db.execute(sql, query, rowid).fetchone() is not None

    def plain_problem(self) -> str | None:
        """Why the index must be made anew, as far as a glance can tell."""
        if self.db.get(_VERSION_KEY) not in (None, _VERSION):
            return "was made by another version of this program"
        try:
            counts = self.db.execute(
                "SELECT (SELECT count(*) FROM passages), (SELECT count(*) FROM keywords_docsize)"
            ).fetchone()
            self.db.execute("SELECT 1 FROM keywords WHERE keywords MATCH 'a'").fetchone()
        except sqlite3.DatabaseError as error:
            return f"fails: {error}"
        return None if counts[0] == counts[1] else f"holds {counts[1]:,} passages of {counts[0]:,}"

    def note_version(self) -> None:
        """Say which version cuts the texts."""
        self.db.set(_VERSION_KEY, _VERSION)


def _terms(section: str, text: str) -> str:
    return " ".join(keywords(indexed_text(section, text)))
