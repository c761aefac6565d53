"""The table of embeddings: every text that was embedded, once, by its hash.

Vectors are kept here as soon as they are made, so that neither a kill nor a new version of a
document, nor a copy of it elsewhere, makes the same text be embedded twice.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence

import numpy as np

from mixtral_rag.embeddings import Vectors
from mixtral_rag.store.database import Database

_BATCH = 500  # SQLite takes some hundred values a query everywhere


def text_hash(text: str) -> bytes:
    """What a text's embedding is kept under, 16 bytes."""
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).digest()


class Embedded:
    """Vectors in `db`, of one embedder."""

    def __init__(self, db: Database) -> None:
        self.db = db

    def known(self, hashes: Sequence[bytes]) -> set[bytes]:
        """Those of `hashes` whose vectors are there."""
        found: set[bytes] = set()
        for start in range(0, len(hashes), _BATCH):
            part = hashes[start : start + _BATCH]
            marks = ",".join("?" * len(part))
            rows = self.db.select(
                f"SELECT hash FROM embeddings WHERE hash IN ({marks})",  # noqa: S608 - only marks
                *part,
            )
            found.update(row[0] for row in rows)
        return found

    def add(self, hashes: Sequence[bytes], vectors: Vectors) -> None:
        """Keep vectors; within a transaction."""
        self.db.execute_many(
            "INSERT OR IGNORE INTO embeddings (hash, vector) VALUES (?, ?)",
            ((h, v.astype("<f4").tobytes()) for h, v in zip(hashes, vectors, strict=True)),
        )

    def sweep(self) -> None:
        """Forget vectors that no passage has; within a transaction."""
        self.db.execute(
            "DELETE FROM embeddings WHERE NOT EXISTS"
            " (SELECT 1 FROM passages p WHERE p.embedding_id = embeddings.id)"
        )

    def of(self, keys: Sequence[str]) -> tuple[list[str], Vectors]:
        """The vectors of passages by key; keys that are not there are left out."""
        rows = self.db.select(
            "SELECT p.key, e.vector FROM passages p JOIN embeddings e ON e.id = p.embedding_id"
            " WHERE p.key IN (SELECT value FROM json_each(?))",
            json.dumps(list(keys)),
        ).fetchall()
        return _stacked(rows)

    def all(
        self, batch: int = _BATCH, *, among: Sequence[int] | None = None
    ) -> Iterator[tuple[list[str], Vectors]]:
        """Every passage's key and vector, in batches, as of one moment.

        Args:
            batch: most passages at once.
            among: ids of the documents whose passages to give; None gives all.
        """
        cursor = self.db.select(
            "SELECT p.key, e.vector FROM passages p JOIN embeddings e ON e.id = p.embedding_id"
            " WHERE ?1 IS NULL OR p.document_id IN (SELECT value FROM json_each(?1))"
            " ORDER BY p.id",
            None if among is None else json.dumps(list(among)),
        )
        while rows := cursor.fetchmany(batch):
            yield _stacked(rows)


def _stacked(rows: Sequence[tuple[str, bytes]]) -> tuple[list[str], Vectors]:
    if not rows:
        return [], np.empty((0, 0), np.float32)
    vectors = np.frombuffer(b"".join(v for _, v in rows), "<f4").reshape(len(rows), -1)
    return [key for key, _ in rows], vectors
