"""The vector index in step with the ledger, and made anew whenever it cannot be trusted.

Chroma writes its files in place and unsynchronised, so the ledger says what they are worth: before
a change of passages commits, the index counts as behind; once it has followed, its files are
flushed to the disk, their sizes, times and hashes noted, and it counts as settled. An index that is
behind, or whose files are not the ones that were noted, is replaced by a new folder.
"""

import json
import shutil
import uuid
from pathlib import Path

from mixtral_rag.embeddings import Vectors
from mixtral_rag.errors import StoreError
from mixtral_rag.store import index_files
from mixtral_rag.store.database import Database
from mixtral_rag.store.embedded import Embedded
from mixtral_rag.store.ledger import Change, Ledger
from mixtral_rag.store.vectors import IndexDamagedError, VectorIndex

_NAME, _STATE, _FILES = "index", "index_state", "index_files"
_SETTLED, _BEHIND = "settled", "behind"
_BATCH = 5_000


class Index:
    """The index under `folder`, derived from the passages in `ledger` and their `embedded` vectors.

    Everything that changes it happens in the process that holds the right to write.
    """

    def __init__(self, folder: Path, ledger: Ledger, embedded: Embedded) -> None:
        self.folder, self._ledger, self._embedded = folder, ledger, embedded
        self._db: Database = ledger.db
        self._ahead: dict[str, bool] = {}  # by key, whether a passage is to be added or taken out
        self._opened: VectorIndex | None = None
        self._generation: int | None = None  # of the ledger, when the index was opened
        self._checked: str | None = None  # the noted files that were found unchanged to the byte

    def mark_behind(self) -> None:
        """Say that the ledger is about to change; within its transaction."""
        if self._db.get(_STATE) != _BEHIND:
            self._db.set(_STATE, _BEHIND)

    def follow(self, change: Change) -> None:
        """Note what was changed, to be done with many others."""
        self._ahead |= dict.fromkeys(change.gone, False)
        self._ahead |= dict.fromkeys(change.new, True)

    def settle(self) -> None:
        """Bring the index in step with the ledger and its files to the disk.

        Raises:
            StoreError: there is no room for it; it stays behind, and the ledger is as it was.
        """
        if self._db.get(_STATE) in (None, _SETTLED):
            return
        try:
            self._flush()
            self._note(self._open())
        except IndexDamagedError:
            self.rebuild()

    def flush_if_large(self) -> None:
        """Bring the index nearer when much has changed, so that the list of it stays short."""
        if len(self._ahead) >= 4 * _BATCH:
            try:
                self._flush()
            except IndexDamagedError:
                self.rebuild()

    def _flush(self) -> None:
        index = self._open()
        new = [key for key, is_new in self._ahead.items() if is_new]
        for start in range(0, len(new), _BATCH):
            keys, vectors = self._embedded.of(new[start : start + _BATCH])
            if keys:
                index.upsert(keys, vectors)
        index.delete([key for key, is_new in self._ahead.items() if not is_new])
        self._ahead.clear()

    def rebuild(self) -> None:
        """Make a new index from the ledger and remove the old.

        Raises:
            StoreError: it cannot be made; the ledger is as it was.
        """
        index = VectorIndex(self.folder / f"index-{uuid.uuid4().hex[:8]}")
        try:
            for keys, vectors in self._embedded.all(_BATCH):
                index.upsert(keys, vectors)
            count = index.count()
            if count != self._ledger.count():
                raise StoreError(f"it holds {count:,} of {self._ledger.count():,} passages")
        except (IndexDamagedError, StoreError) as error:
            shutil.rmtree(index.folder, ignore_errors=True)
            raise StoreError(
                f"cannot make the vector index in {self.folder}: {error}; is the disk full? The "
                "documents are stored, and the next run makes it"
            ) from error
        self.close()
        self._opened = index
        self._ahead.clear()
        self._note(index)
        self.remove_others()

    def remove_others(self) -> None:
        """Remove the folders of indexes that are no longer used, as a kill may leave them."""
        name = self._db.get(_NAME)
        for folder in self.folder.glob("index-*"):
            if folder.name != name:
                shutil.rmtree(folder, ignore_errors=True)

    def _note(self, index: VectorIndex) -> None:
        """Put the files on the disk, and note in the ledger that they count and what they are."""
        index.close()  # so that nothing is written after the files were noted
        files = json.dumps(index_files.flushed(index.folder))
        with self._db.transaction():
            self._db.set(_NAME, index.folder.name)
            self._db.set(_FILES, files)
            self._db.set(_STATE, _SETTLED)
        self._generation, self._checked = self._ledger.generation, files

    def _open(self) -> VectorIndex:
        name = self._db.get(_NAME)
        if self._opened is None or (name is not None and self._opened.folder.name != name):
            self.close()
            name = name or f"index-{uuid.uuid4().hex[:8]}"
            self._opened = VectorIndex(self.folder / name)
            if self._db.get(_NAME) is None:
                with self._db.transaction():
                    self._db.set(_NAME, name)
        return self._opened

    def problem(self, *, to_the_byte: bool = False) -> str | None:
        """Why the index cannot be used; None when it is settled and its files are as noted.

        Args:
            to_the_byte: compare the files' content too, once in a process.
        """
        state, noted = self._db.get(_STATE), self._db.get(_FILES)
        if state is None:
            return None
        if state != _SETTLED or noted is None:
            return "was not finished"
        folder = self.folder / str(self._db.get(_NAME))
        to_the_byte = to_the_byte and self._checked != noted
        problem = index_files.difference(folder, json.loads(noted), to_the_byte=to_the_byte)
        if problem is None and to_the_byte:
            self._checked = noted
        return problem

    def query(self, vector: Vectors, k: int) -> list[tuple[str, float]]:
        """The `k` nearest passages, best first, with their cosines.

        Raises:
            IndexDamagedError: the index fails.
        """
        if self._generation not in (None, self._ledger.generation):
            self.close()  # another process wrote; Chroma does not see that in an open index
        self._generation = self._ledger.generation
        return self._open().query(vector, k)

    def close(self) -> None:
        """Close its files; they open again on the next use."""
        if self._opened is not None:
            self._opened.close()
        self._opened = None

    def verify(self) -> str | None:
        """Compare the index with the ledger, passage by passage; None when they agree."""
        if problem := self.problem(to_the_byte=True):
            return problem
        if self._db.get(_STATE) is None:
            return None
        try:
            return _disagreement(self._open(), self._ledger, self._embedded)
        except IndexDamagedError as error:
            return str(error)


def _disagreement(index: VectorIndex, ledger: Ledger, embedded: Embedded) -> str | None:
    if index.count() != ledger.count():
        return f"holds {index.count():,} passages, the ledger {ledger.count():,}"
    for keys, vectors in embedded.all(_BATCH):
        held = index.vectors(keys)
        wrong = sum(k not in held or abs(float(held[k] @ v) - 1) > 1e-3
                    for k, v in zip(keys, vectors, strict=True))  # fmt: skip
        if wrong:
            return f"lacks {wrong:,} passages of the ledger or has other vectors for them"
        # HNSW is approximate, so a few may be missed; a torn graph misses many.
        probes = range(0, len(keys), max(1, len(keys) // 20))
        missed = sum(not _finds(index, vectors[i : i + 1]) for i in probes)
        if missed > max(1, len(probes) // 10):
            return f"does not find {missed:,} of {len(probes):,} passages by their own vectors"
    return None


def _finds(index: VectorIndex, vector: Vectors) -> bool:
    return any(cosine > 1 - 1e-3 for _, cosine in index.query(vector, 3))
