"""Searching a store: by vectors, exactly or by the index, and by words."""

import dataclasses
import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from mixtral_rag.embeddings import Vectors
from mixtral_rag.embeddings.base import unit
from mixtral_rag.errors import EmptyStoreError, LockedError, StoreError
from mixtral_rag.store import lock
from mixtral_rag.store.bm25 import Bm25
from mixtral_rag.store.filter import Filter
from mixtral_rag.store.vectors import IndexDamagedError
from mixtral_rag.types import Passage

if TYPE_CHECKING:
    from mixtral_rag.store.documents import DocumentStore

_log = logging.getLogger("mixtral_rag.store")
EXACT_BYTES = 192 << 20  # 131,000 passages of 384 dimensions
_BATCH = 5_000
_Hits = list[tuple[str, float]]


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """What a question found.

    Args:
        nearest: keys of the nearest passages with their cosines, best first.
        by_words: keys of the passages that share most words with it, and their BM25, best first.
        passages: all of both by key, with cosine and BM25 as scores.
        vectors: for each, the row of its embedding.
    """

    nearest: _Hits
    by_words: _Hits
    passages: dict[str, Passage]
    vectors: dict[str, Vectors]


class Searching:
    """Search in one store.

    Args:
        store: the documents.
        exact_bytes: most memory for comparing a question with every vector.
    """

    def __init__(self, store: "DocumentStore", *, exact_bytes: int) -> None:
        self._store, self._exact_bytes = store, exact_bytes
        self._matrix: tuple[int, list[str], Vectors] | None = None  # and the generation it is of
        self._bm25 = Bm25(store.db)
        # Compares vectors while words are searched: neither holds Python up for long.
        self._beside = ThreadPoolExecutor(1, "vectors")
        # Counting rows takes as long as finding some; what was counted holds for a generation.
        self._counted = (-1, 0)
        self._good_words = -1  # the generation at which nothing was wrong with the keyword index

    def nearest(
        self, question: str | Sequence[float], k: int, *, filter: Filter | None = None
    ) -> list[Passage]:
        """The `k` passages nearest to a question or a vector, best first, with their cosines.

        Raises:
            EmptyStoreError: nothing has been ingested.
        """
        found = self.both(question, k, filter=filter, by_words=False)
        return [found.passages[key] for key, _ in found.nearest]

    def both(
        self,
        question: str | Sequence[float],
        k: int,
        *,
        filter: Filter | None = None,
        by_words: bool = True,
    ) -> Found:
        """The `k` passages nearest to `question` and the `k` that share most of its words.

        Args:
            question: what to search for; a vector has no words.
            k: passages to find each way.
            filter: which documents to search; None searches all.
            by_words: whether to search by words, too.

        Raises:
            EmptyStoreError: nothing has been ingested.
            StoreError: the store is damaged.
        """
        store = self._store
        generation = store.ledger.generation
        if self._counted[0] != generation:
            self._counted = (generation, store.ledger.count())
        if (count := self._counted[1]) == 0:
            raise EmptyStoreError(store.folder)
        vector = self._vector(question)
        in_memory = count * vector.shape[1] * 4 <= self._exact_bytes
        hits = None
        if not in_memory and not filter:
            hits = self._by_index(vector, min(k, count), generation)
        among = filter.documents(store.db) if filter else None
        weights: dict[str, float] = {}
        worded: _Hits = []
        ahead = None
        if in_memory and among is None and self._matrix and self._matrix[0] == generation:
            ahead = self._beside.submit(_best, [self._matrix[1:]], vector, k)
        if by_words and isinstance(question, str):
            weights, worded = self._by_words(question, k, among, generation)
        hits = ahead.result() if ahead else hits
        with store.db.snapshot():  # an ingest may commit at any moment
            if hits is None or store.ledger.generation != generation:
                hits = self._exact(vector, k, among, keep=in_memory)
            return self._found(vector, hits, worded, weights)

    def _vector(self, question: str | Sequence[float]) -> Vectors:
        if isinstance(question, str):
            return self._store.embedder.query(question)
        return unit(np.asarray([question], np.float32))

    def _found(
        self, vector: Vectors, hits: _Hits, worded: _Hits, weights: dict[str, float]
    ) -> Found:
        keys = list(dict.fromkeys(key for key, _ in [*hits, *worded]))
        held, rows = self._store.embedded.of(keys)
        cosines = dict(zip(held, (rows @ vector[0]).tolist(), strict=True)) if held else {}
        scores = dict(worded)
        if weights:
            scores |= self._bm25.scores(weights, [key for key in keys if key not in scores])
        passages = self._store.ledger.passages(keys, cosines, scores if weights else {})
        by_words = sorted(scores.items(), key=lambda hit: (-hit[1], hit[0]))
        return Found(
            [hit for hit in hits if hit[0] in passages],
            [hit for hit in by_words if hit[1] > 0],
            passages,
            dict(zip(held, rows, strict=True)),
        )

    def _by_index(self, vector: Vectors, k: int, generation: int) -> _Hits | None:
        """The nearest passages as of `generation`; None when only the ledger can answer.

        The index is approximate: passages that are much alike can hide one another.
        """
        store = self._store
        try:
            if store.index.problem(to_the_byte=True):
                with lock.writing(store.folder):
                    store.mend(to_the_byte=True)
            try:
                hits = store.index.query(vector, k, generation)
            except IndexDamagedError as error:
                if store.ledger.generation != generation:
                    return None
                with lock.writing(store.folder):
                    store.remake_index(f"it {error}")
                hits = store.index.query(vector, k, generation)
        except LockedError:  # an ingest is under way
            return None
        except (IndexDamagedError, StoreError) as error:
            _log.warning("compared with every passage, without the index: %s", error)
            return None
        return hits if len(hits) == k else None

    def _by_words(
        self, question: str, k: int, among: Sequence[int] | None, generation: int
    ) -> tuple[dict[str, float], _Hits]:
        """The weights of a question's terms, and the passages that share most of them."""
        problem = None
        if self._good_words != generation:
            problem = self._store.ledger.keywords.plain_problem()
        if problem is None:
            self._good_words = generation
            try:
                return self._ranked(question, k, among)
            except StoreError as error:
                problem = f"fails: {error}"
        try:
            with lock.writing(self._store.folder):
                self._store.remake_keywords(problem)
            return self._ranked(question, k, among)
        except (LockedError, StoreError) as error:
            _log.warning("searched without the keyword index, which %s: %s", problem, error)
            return {}, []

    def _ranked(
        self, question: str, k: int, among: Sequence[int] | None
    ) -> tuple[dict[str, float], _Hits]:
        weights = self._bm25.weights(question)
        return weights, self._bm25.search(weights, k, among)

    def _exact(self, vector: Vectors, k: int, among: Sequence[int] | None, *, keep: bool) -> _Hits:
        """Compare with every vector in the ledger; `keep` them for the next question."""
        embedded = self._store.embedded
        batches: Iterable[tuple[list[str], Vectors]]
        if among is None and keep:
            generation = self._store.ledger.generation
            if self._matrix is None or self._matrix[0] != generation:
                self._matrix = (
                    generation,
                    *_stacked(embedded.all(_BATCH), self._store.ledger.count()),
                )
            batches = [self._matrix[1:]]
        else:
            batches = embedded.all(_BATCH, among=among)
        return _best(batches, vector, k)


def _best(batches: Iterable[tuple[list[str], Vectors]], vector: Vectors, k: int) -> _Hits:
    """The `k` passages nearest to a vector, best first."""
    best: _Hits = []
    for keys, vectors in batches:
        scores = vectors @ vector[0]
        top = np.sort(np.argpartition(-scores, k)[:k]) if len(keys) > k else range(len(keys))
        best += [(keys[i], float(scores[i])) for i in top]
        best = sorted(best, key=lambda hit: -hit[1])[:k]
    return best


def _stacked(batches: Iterable[tuple[list[str], Vectors]], count: int) -> tuple[list[str], Vectors]:
    """All batches as one, which is never in memory twice."""
    keys: list[str] = []
    whole = np.empty((0, 0), np.float32)
    for some, vectors in batches:
        if not keys:
            whole = np.empty((count, vectors.shape[1]), np.float32)
        whole[len(keys) : len(keys) + len(some)] = vectors
        keys += some
    return keys, whole
