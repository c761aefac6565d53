"""The vector index in step with the ledger, and made anew whenever it cannot be trusted.

Chroma writes its files in place and unsynchronised, so the ledger says what they are worth: before
a change of passages commits, the index counts as behind; once it has followed, its files are
flushed to the disk, their sizes, times and hashes noted, and it counts as settled. An index that is
behind, or whose files are not the ones that were noted, is replaced by a new folder.
"""

import contextlib
import logging
import shutil
import uuid
from pathlib import Path

from mixtral_rag.embeddings import Vectors
from mixtral_rag.errors import StoreError
from mixtral_rag.store import index_files
from mixtral_rag.store.database import Database
from mixtral_rag.store.embedded import Embedded
from mixtral_rag.store.ledger import Change, Ledger
from mixtral_rag.store.shards import Shards
from mixtral_rag.store.vectors import IndexDamagedError

_NAME, _STATE, _FILES = "index", "index_state", "index_files"
_SETTLED, _BEHIND = "settled", "behind"
_BATCH = 5_000
_IS_IT_FULL = "is the disk full? The documents are stored, and the next run makes it"
_log = logging.getLogger("mixtral_rag.store")


class Index:
    """The index under `folder`, derived from the passages in `ledger` and their `embedded` vectors.

    Everything that changes it happens in the process that holds the right to write.
    """

    def __init__(self, folder: Path, ledger: Ledger, embedded: Embedded) -> None:
        self.folder, self._ledger, self._embedded = folder, ledger, embedded
        self._db: Database = ledger.db
        # keys of passages in which the ledger may be ahead, and whether the index may hold them
        self._touched: dict[str, bool] = {}
        self._opened: Shards | None = None
        self._generation: int | None = None  # of the ledger, when the index was opened
        self._checked: str | None = None  # the noted files that were found unchanged to the byte
        self._is_ours = False  # whether its files were changed here since they were noted

    def mark_behind(self) -> None:
        """Say that the ledger is about to change; within its transaction."""
        if self._db.get(_STATE) != _BEHIND:
            self._db.set(_STATE, _BEHIND)

    def follow(self, change: Change) -> None:
        """Note what is about to be changed, to be done with many others.

        Within the transaction, so that no change can be committed and not be followed.
        """
        for key in change.new:
            self._touched.setdefault(key, False)
        self._touched |= dict.fromkeys([*change.gone, *change.other], True)

    def settle(self) -> None:
        """Bring the index in step with the ledger and its files to the disk.

        Raises:
            StoreError: there is no room for it; it stays behind, and the ledger is as it was.
        """
        if self._db.get(_STATE) in (None, _SETTLED):
            return
        try:
            self._flush()
            index = self._open()
            if index.count() != self._ledger.count():
                raise IndexDamagedError(_count_differs(index.count(), self._ledger.count()))
        except IndexDamagedError as error:
            self._rebuild_for(str(error))
        else:
            self._note(index)

    def flush_if_large(self) -> None:
        """Bring the index nearer when much has changed, so that the list of it stays short."""
        if len(self._touched) >= 4 * _BATCH:
            try:
                self._flush()
            except IndexDamagedError as error:
                self._rebuild_for(str(error))

    def _flush(self) -> None:
        if not self._is_ours and (problem := self._difference(to_the_byte=True)):
            raise IndexDamagedError(problem)  # or the next note would declare it sound
        self._is_ours = True
        index, touched = self._open(), list(self._touched)
        for start in range(0, len(touched), _BATCH):
            part = touched[start : start + _BATCH]
            keys, vectors = self._embedded.of(part)
            held = [n for n, key in enumerate(keys) if self._touched[key]]
            new = [n for n, key in enumerate(keys) if not self._touched[key]]
            index.delete([k for k in set(part).difference(keys) if self._touched[k]])
            index.put([keys[n] for n in held], vectors[held])
            index.add([keys[n] for n in new], vectors[new])
        self._touched.clear()

    def _rebuild_for(self, reason: str) -> None:
        _log.warning("the vector index in %s is made anew: it %s", self.folder, reason)
        self.rebuild()

    def rebuild(self) -> None:
        """Make a new index from the ledger and remove the old.

        Raises:
            StoreError: it cannot be made; the ledger is as it was.
        """
        index = Shards(self.folder / f"index-{uuid.uuid4().hex[:8]}")
        try:
            for keys, vectors in self._embedded.all(_BATCH):
                index.add(keys, vectors)
            count = index.count()
            if count != self._ledger.count():
                raise IndexDamagedError(_count_differs(count, self._ledger.count()))
        except IndexDamagedError as error:
            index.close()
            shutil.rmtree(index.folder, ignore_errors=True)
            raise StoreError(
                f"cannot make the vector index in {self.folder}: it {error}; {_IS_IT_FULL}"
            ) from error
        self.close()
        self._opened = index
        self._touched.clear()
        self._note(index)
        self.remove_others()

    def remove_others(self) -> None:
        """Remove the folders of indexes that are no longer used, as a kill may leave them."""
        name = self._db.get(_NAME)
        for folder in self.folder.glob("index-*"):
            if folder.name == name:
                continue
            if folder.is_dir() and not folder.is_symlink():
                shutil.rmtree(folder, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    folder.unlink()

    def _note(self, index: Shards) -> None:
        """Put the files on the disk, and note in the ledger that they count and what they are."""
        index.close()  # so that nothing is written after the files were noted
        try:
            index.folder.mkdir(exist_ok=True)  # an empty one has none
            files = index_files.flushed(index.folder)
        except OSError as error:
            raise StoreError(
                f"cannot put the vector index {index.folder} on the disk: {error.strerror}; "
                f"{_IS_IT_FULL}"
            ) from error
        with self._db.transaction():
            self._db.set(_NAME, index.folder.name)
            self._db.set(_FILES, files)
            self._db.set(_STATE, _SETTLED)
        self._generation, self._checked = self._ledger.generation, files
        self._is_ours = False

    def _open(self) -> Shards:
        name = self._db.get(_NAME)
        if self._opened is None or (name is not None and self._opened.folder.name != name):
            self.close()
            name = name or f"index-{uuid.uuid4().hex[:8]}"
            self._opened = Shards(self.folder / name)
            if self._db.get(_NAME) is None:
                with self._db.transaction():
                    self._db.set(_NAME, name)
        return self._opened

    def problem(self, *, to_the_byte: bool = False) -> str | None:
        """Why the index cannot be used; None when it is settled and its files are as noted.

        Args:
            to_the_byte: compare the files' content too, once in a process.
        """
        state = self._db.get(_STATE)
        if state is None and self._ledger.count() == 0:
            return None
        if state != _SETTLED or self._db.get(_FILES) is None:
            return "was not finished"
        return self._difference(to_the_byte=to_the_byte)

    def _difference(self, *, to_the_byte: bool) -> str | None:
        noted = self._db.get(_FILES)
        if noted is None:
            return None
        folder = self.folder / str(self._db.get(_NAME))
        to_the_byte = to_the_byte and self._checked != noted
        problem = index_files.difference(folder, noted, to_the_byte=to_the_byte)
        if problem is None and to_the_byte:
            self._checked = noted
        return problem

    def query(self, vector: Vectors, k: int, generation: int) -> list[tuple[str, float]]:
        """The `k` nearest passages, best first, with their cosines.

        Args:
            vector: one row.
            k: how many.
            generation: of the ledger, taken before the index was found to be without problem.

        Raises:
            IndexDamagedError: the index fails.
        """
        if self._generation != generation:
            self.close()  # another process wrote; Chroma does not see that in an open index
        self._generation = generation
        index = self._open()
        hits = index.query(vector, k)
        if len(hits) < k and (count := index.count()) != self._ledger.count():
            raise IndexDamagedError(_count_differs(count, self._ledger.count()))
        return hits

    def close(self) -> None:
        """Close its files; they open again on the next use, as other processes left them."""
        if self._opened is not None:
            self._opened.close()
        self._opened = None

    def verify(self) -> str | None:
        """Compare the index with the ledger, passage by passage; None when they agree."""
        self.close()
        if problem := self.problem(to_the_byte=True):
            return problem
        if self._db.get(_STATE) is None:
            return None
        try:
            return _disagreement(self._open(), self._ledger, self._embedded)
        except IndexDamagedError as error:
            return str(error)


def _disagreement(index: Shards, ledger: Ledger, embedded: Embedded) -> str | None:
    if (count := index.count()) != ledger.count():
        return _count_differs(count, ledger.count())
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


def _count_differs(here: int, there: int) -> str:
    return f"holds {here:,} passages, the ledger {there:,}"


def _finds(index: Shards, vector: Vectors) -> bool:
    return any(cosine > 1 - 1e-3 for _, cosine in index.query(vector, 3))
