"""Question to ranked passages, and whether they have to do with the question at all."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np

from mixtral_rag.embeddings import Vectors
from mixtral_rag.errors import SettingsError
from mixtral_rag.language import terms
from mixtral_rag.store.documents import DocumentStore
from mixtral_rag.store.filter import Filter
from mixtral_rag.store.search import Found
from mixtral_rag.types import Passage

# What sharing all its words with the passages adds to a question's cosine. Fitted on CMRC 2018
# and Debian documents with multilingual-e5-small: the best of 0 to 0.3.
_SHARED_WORDS = 0.05
_COMPARED = 4
_CANDIDATES = 50  # of each way of searching, at least
_DENSE_SHARE = 0.4  # of a passage's place that cosine decides; the best on CMRC 2018

Ranking = list[tuple[str, float]]


@runtime_checkable
class Reranker(Protocol):
    """Reads question and passage together; such as `embeddings.reranker.CrossEncoderReranker`."""

    def scores(self, question: str, texts: Sequence[str]) -> list[float]:
        """How well each text answers the question, higher is better."""
        ...


class Retriever:
    """Search over a store, by meaning and by words at once.

    Args:
        store: the documents.
        top_k: how many passages to return.
        mode: `hybrid`, or only `dense` or `keyword`.
        diversity: from 0, the best passages whatever they repeat, towards 1, passages unlike those
            before them (maximal marginal relevance).
        min_score: least cosine of a passage; None lets all pass.
        reranker: puts the best candidates into its own order.
    """

    def __init__(
        self,
        store: DocumentStore,
        *,
        top_k: int = 8,
        mode: str = "hybrid",
        diversity: float = 0.0,
        min_score: float | None = None,
        reranker: Reranker | None = None,
    ) -> None:
        if top_k < 1:
            raise SettingsError(f"top_k is {top_k}; it must be at least 1")
        if mode not in ("hybrid", "dense", "keyword"):
            raise SettingsError(f"mode is {mode!r}; it must be hybrid, dense or keyword")
        if not 0 <= diversity < 1:
            raise SettingsError(f"diversity is {diversity}; it must be from 0 to below 1")
        self.store, self.top_k, self.mode = store, top_k, mode
        self.diversity, self.min_score, self.reranker = diversity, min_score, reranker

    @property
    def candidates(self) -> int:
        """How many passages are worth asking for to fill a large context."""
        return max(_CANDIDATES, self.top_k)

    def search(
        self,
        question: str,
        *,
        previous: str | None = None,
        k: int | None = None,
        filter: Filter | None = None,
    ) -> list[Passage]:
        """The best passages, best first.

        Args:
            question: what to search for.
            previous: the question before this one in a conversation. A follow-up often names its
                subject only there, so passages near both together count too.
            k: how many passages, in place of `top_k`.
            filter: which documents to search.

        Raises:
            EmptyStoreError: nothing has been ingested.
        """
        k = k or self.top_k
        n = max(_CANDIDATES, 2 * k)
        asked = [question] if previous is None else [question, f"{previous} {question}"]
        by_words = self.mode != "dense"
        found = [self.store.searching.both(q, n, filter=filter, by_words=by_words) for q in asked]
        ranking = best_of([self._ranking(f) for f in found])
        passages = {key: p for f in reversed(found) for key, p in f.passages.items()}
        passages = {key: p for key, p in passages.items() if self._is_near_enough(p)}
        ranking = [hit for hit in ranking if hit[0] in passages]
        if self.reranker is not None:
            ranking, passages = self._reranked(question, ranking[:n], passages)
        if self.diversity:
            vectors = {key: row for f in found for key, row in f.vectors.items()}
            ranking = diverse(ranking, vectors, k, self.diversity)
        return [passages[key] for key, _ in ranking[:k]]

    def _is_near_enough(self, passage: Passage) -> bool:
        return self.min_score is None or _score(passage) >= self.min_score

    def _ranking(self, found: Found) -> Ranking:
        if self.mode == "dense":
            return found.nearest
        if self.mode == "keyword":
            return found.by_words
        return fuse(
            found.nearest, found.by_words, {k: _score(p) for k, p in found.passages.items()}
        )

    def _reranked(
        self, question: str, ranking: Ranking, passages: dict[str, Passage]
    ) -> tuple[Ranking, dict[str, Passage]]:
        assert self.reranker is not None
        keys = [key for key, _ in ranking]
        scores = self.reranker.scores(question, [_all_text(passages[key]) for key in keys])
        reranked = sorted(zip(keys, scores, strict=True), key=lambda hit: -hit[1])
        return reranked, {key: replace(passages[key], rerank_score=s) for key, s in reranked}

    def is_relevant(self, question: str, hits: Sequence[Passage]) -> bool:
        """Whether the best passages have to do with the question.

        Either all of its words stand in the first few passages; or the best cosine, plus a little
        for the share of words that do, reaches what the embedder gives as its mark.
        """
        if not hits:
            return False
        wanted = terms(question)
        nearest = sorted(hits, key=_score, reverse=True)
        held = set().union(*(terms(_all_text(h)) for h in nearest[:_COMPARED]))
        shared = len(wanted & held) / len(wanted) if wanted else 0.0
        return (
            shared == 1
            or _score(nearest[0]) + _SHARED_WORDS * shared >= self.store.embedder.relevant
        )


def fuse(nearest: Ranking, by_words: Ranking, cosines: Mapping[str, float]) -> Ranking:
    """One ranking from two, best first.

    Each passage's place in the range of cosines, 1 for the best and 0 for the last of the nearest,
    and likewise of BM25, weighed 0.4 to 0.6. On CMRC 2018 this finds more than the sum of
    reciprocal ranks does: 0.982 against 0.977 of the answers come first.

    Args:
        nearest: passages with their cosines, best first.
        by_words: passages with their BM25, best first; those not among them have none.
        cosines: of all passages in either.
    """
    if not by_words:
        return list(nearest)
    words = dict(by_words)
    lowest = by_words[min(len(by_words), _CANDIDATES) - 1][1] if len(by_words) > 1 else 0.0
    close = _in_range(cosines, [score for _, score in nearest])
    worded = _in_range({key: words.get(key, 0.0) for key in cosines}, [by_words[0][1], lowest])
    fused = {key: _DENSE_SHARE * close[key] + (1 - _DENSE_SHARE) * worded[key] for key in cosines}
    return sorted(fused.items(), key=lambda hit: (-hit[1], hit[0]))


def _in_range(scores: Mapping[str, float], spread: Sequence[float]) -> dict[str, float]:
    """The scores by their place between the ends of `spread`, none below 0."""
    low, high = min(spread, default=0.0), max(spread, default=0.0)
    return {key: max(0.0, (s - low) / (high - low + 1e-9)) for key, s in scores.items()}


def best_of(rankings: Sequence[Ranking]) -> Ranking:
    """Every passage with the best of its scores, best first."""
    best: dict[str, float] = {}
    for key, score in (hit for ranking in rankings for hit in ranking):
        best[key] = max(score, best.get(key, score))
    return sorted(best.items(), key=lambda hit: -hit[1])


def diverse(ranking: Ranking, vectors: Mapping[str, Vectors], k: int, diversity: float) -> Ranking:
    """The first `k` by maximal marginal relevance (Carbonell and Goldstein 1998).

    Each next passage is the one with most of its own score, in the range of all, less its greatest
    cosine with one taken before, weighed `1 - diversity` to `diversity`.
    """
    left = _in_range(dict(ranking), [score for _, score in ranking])
    taken: Ranking = []
    nearest = dict.fromkeys(left, -1.0)
    while left and len(taken) < k:
        values = {
            key: (1 - diversity) * score - (diversity * nearest[key] if taken else 0.0)
            for key, score in left.items()
        }
        best = max(values, key=lambda key: values[key])
        taken.append((best, values[best]))
        del left[best]
        for key in left:
            nearest[key] = max(nearest[key], float(np.dot(vectors[key], vectors[best])))
    return taken


def _score(passage: Passage) -> float:
    return passage.score if passage.score is not None else 0.0


def _all_text(passage: Passage) -> str:
    return " ".join((passage.title, *passage.section, passage.text))
