"""BM25 over the keyword index, at a cost that does not grow with the number of passages.

FTS5's own ranking reads every passage that has any word of the question, which Chinese characters
make nearly all of them: 0.3 s at 100,000 passages. So the question's rarest terms choose the
candidates, and all its terms rank them.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from mixtral_rag.language import fold, is_han, keywords, words
from mixtral_rag.store.database import Database

_K1, _B = 1.2, 0.75  # as in FTS5
_COUNTED = 500  # passages up to which a term is counted exactly
_MATCHED = 1000  # passages that the rare terms may match together
_CANDIDATES = 50
_REMEMBERED = 100_000  # terms whose counts are kept
# Only the best are looked up among the passages, which takes as long as ranking all.
_BEST = (
    "SELECT p.key FROM (SELECT rowid AS id FROM keywords WHERE keywords MATCH ?1"
    " ORDER BY rank LIMIT ?2) best JOIN passages p ON p.id = best.id"
)
_BEST_AMONG = (
    "SELECT p.key FROM keywords JOIN passages p ON p.id = keywords.rowid WHERE keywords MATCH ?1"
    " AND p.document_id IN (SELECT value FROM json_each(?3)) ORDER BY rank LIMIT ?2"
)


class Bm25:
    """Ranks the passages in `db` by the words they share with a question."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._counts: dict[str, int] = {}  # of terms asked for before, at the state below
        self._counted_at: tuple[int, str | None] = (0, None)
        self._ids: tuple[int, int] | None = None  # the first passage and the last

    def find(self, question: str, k: int) -> list[tuple[str, float]]:
        """The `k` passages that share most with a question, best first, with keys and scores."""
        return self.search(self.weights(question), k)

    def weights(self, question: str) -> dict[str, float]:
        """The terms of a question that some passage has, each with its weight, rarest first.

        The weight is Lucene's: log(1 + (N - n + 0.5) / (n + 0.5)) for n of N passages.
        """
        total, _ = self._size()
        now = (total, self._db.get("generation"))
        if now != self._counted_at or len(self._counts) > _REMEMBERED:
            self._counts, self._counted_at, self._ids = {}, now, None
        terms = dict.fromkeys(keywords(question))
        for term in terms.keys() - self._counts.keys():
            self._counts[term] = self._count(term, total)
        counts = {term: self._counts[term] for term in terms}
        rarest = sorted((t for t in counts if counts[t]), key=lambda t: counts[t])
        return {t: math.log(1 + (total - counts[t] + 0.5) / (counts[t] + 0.5)) for t in rarest}

    def _size(self) -> tuple[int, int]:
        """Number of passages in the index, and of their terms together.

        The first row of FTS5's data is this: see `FTS5_AVERAGES_ROWID` in its source.
        """
        row = self._db.select("SELECT block FROM keywords_data WHERE id = 1").fetchone()
        numbers = _varints(row[0]) if row else []
        return (numbers[0], numbers[1]) if len(numbers) > 1 else (0, 0)

    def _count(self, term: str, total: int) -> int:
        """In how many passages a term is; beyond 500, an estimate from how close they lie."""
        found, last = self._db.select(
            "SELECT count(*), max(rowid) FROM"
            " (SELECT rowid FROM keywords WHERE keywords MATCH ? LIMIT ?)",
            _quoted(term), _COUNTED,
        ).fetchone()  # fmt: skip
        if found < _COUNTED:
            return int(found)
        if self._ids is None:
            self._ids = self._db.select(
                "SELECT (SELECT min(id) FROM passages), (SELECT max(id) FROM passages)"
            ).fetchone()
        first, end = self._ids
        nearness = (int(end) - int(first) + 1) / (int(last) - int(first) + 1)
        return min(total, round(_COUNTED * nearness))

    def search(
        self, weights: Mapping[str, float], k: int, among: Sequence[int] | None = None
    ) -> list[tuple[str, float]]:
        """The `k` passages that score most, best first, with their keys and scores.

        Args:
            weights: of the question's terms, rarest first.
            k: how many.
            among: ids of the documents to search; None searches all.
        """
        rare = self._rare(weights)
        if not rare:
            return []
        rows = self._db.select(
            _BEST if among is None else _BEST_AMONG,
            " OR ".join(map(_quoted, rare)),
            max(k, _CANDIDATES),
            *(() if among is None else (json.dumps(list(among)),)),
        )
        scores = self.scores(weights, [row[0] for row in rows])
        return sorted(scores.items(), key=lambda hit: (-hit[1], hit[0]))[:k]

    def _rare(self, weights: Mapping[str, float]) -> list[str]:
        """The rarest terms, until they match enough; single Chinese characters only in need."""
        telling = [t for t in weights if len(t) > 1 or not is_han(t)] or list(weights)
        total, _ = self._size()
        rare: list[str] = []
        matched = 0.0
        for term in telling:
            matched += (total + 1) / math.exp(weights[term])  # the weight's n, nearly
            if rare and matched > _MATCHED:
                break
            rare.append(term)
        return rare

    def scores(self, weights: Mapping[str, float], keys: Sequence[str]) -> dict[str, float]:
        """The scores of some passages; those that share nothing have 0."""
        total, n_terms = self._size()
        rows = self._db.select(
            "SELECT p.key, p.section, p.text, d.sz FROM passages p"
            " JOIN keywords_docsize d ON d.id = p.id"
            " WHERE p.key IN (SELECT value FROM json_each(?))",
            json.dumps(list(keys)),
        )
        average = n_terms / max(1, total)
        han = [(term, weight) for term, weight in weights.items() if is_han(term)]
        other = {term: weight for term, weight in weights.items() if not is_han(term)}
        scores: dict[str, float] = {}
        for key, section, text, size in rows:
            length = _K1 * (1 - _B + _B * _varints(size)[0] / average)
            counted = _counted(fold(indexed_text(section, text)), han, other)
            scores[key] = sum(w * n * (_K1 + 1) / (n + length) for w, n in counted)
        return scores


def indexed_text(section: str, text: str) -> str:
    """What of a passage is indexed: made from nothing but what stands in its row."""
    return " ".join([*json.loads(section), text])


def _counted(
    text: str, han: Sequence[tuple[str, float]], other: Mapping[str, float]
) -> Iterator[tuple[float, int]]:
    """The weight of each term that a folded text has, and how often."""
    for term, weight in han:
        if count := text.count(term):
            yield weight, count
    for word, count in Counter(words(text)).items() if other else ():
        if word in other:
            yield other[word], count


def _quoted(term: str) -> str:
    return f'"{term}"'


def _varints(data: bytes) -> list[int]:
    """SQLite's numbers of 7 bits a byte, the highest first."""
    numbers, value = [], 0
    for byte in data:
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            numbers.append(value)
            value = 0
    return numbers
