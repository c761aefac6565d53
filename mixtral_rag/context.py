"""The context planner: what the model reads, in what order, and what was left out.

Search finds small windows; the model reads them with what stands around them, as much as the budget
holds. When everything there is fits, everything is read.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from mixtral_rag.language import sentences
from mixtral_rag.types import LeftOut, Passage

_HEADER = 24  # tokens of a passage's number, file and place, about
_MOST_MERGED = 4  # windows under one number: a citation should not point at twenty pages
_NEAR = 4  # windows each side of a found one that come before worse finds
_MISSES = 16  # passages in a row that do not fit, until no more are tried
_LEAST_CUT = 24  # tokens of a passage's beginning that are worth sending
_NO_ROOM, _CUT = "no room is left", "only its beginning fits"


@dataclass(frozen=True, slots=True)
class Plan:
    """What goes into the prompt, and what does not.

    Args:
        passages: what the model reads: neighbours merged, in document order; passages that
            are read apart as `asking.best_last` orders them.
        left_out: found but not sent, or not whole.
        tokens: tokens of the whole prompt.
        budget: most tokens the prompt may take.
        is_whole: whether this is everything there is.
    """

    passages: tuple[Passage, ...]
    left_out: tuple[LeftOut, ...]
    tokens: int
    budget: int
    is_whole: bool = False


class Measure(Protocol):
    """Counts tokens as the model does."""

    def prompt(self, passages: Sequence[Passage]) -> int:
        """Tokens of the whole prompt with these passages, exactly."""
        ...

    def text(self, text: str) -> int:
        """Tokens of a text by itself; within a prompt it may be one or two more or fewer."""
        ...


def plan_context(
    hits: Sequence[Passage],
    measure: Measure,
    *,
    budget: int,
    top_k: int = 8,
    around: Callable[[Passage, int], Sequence[Passage]] = lambda hit, distance: (),
    everything: Sequence[Passage] | None = None,
    is_merged: bool = True,
) -> Plan:
    """Spend `budget` tokens on what helps most.

    In this order, as far as there is room: the `top_k` best passages; what stands around each of
    them under the same heading, nearest first; further hits; the rest of the best ones' documents.
    A passage that does not fit is left out and smaller ones after it are still tried; at the end
    the beginning of one fills what is left. What was taken is laid out by document and position, so
    that the same passages always give the same prompt.

    Args:
        hits: found passages, best first.
        measure: counts tokens.
        budget: most tokens the prompt may take.
        top_k: hits that come before anything around them.
        around: passages of a hit's document within a distance of it, in order.
        everything: all passages there are, when they may fit; None when they cannot.
        is_merged: whether neighbours become one passage, and the beginning of one fills what is
            left; otherwise every passage is sent as it is.
    """
    order = arrange if is_merged else in_order
    if everything and (tokens := measure.prompt(whole := order(everything))) <= budget:
        return Plan(tuple(whole), (), tokens, budget, is_whole=True)
    filling = _Filling(measure, budget, is_merged=is_merged)
    distance = max(_NEAR, budget // 32)  # windows each side, if they are short
    filling.fill(_by_worth(hits, top_k, around, distance, filling.holds))
    passages = tuple(order(filling.taken))
    return Plan(passages, filling.left_out(hits[:top_k]), filling.tokens, budget)


def _by_worth(
    hits: Sequence[Passage],
    top_k: int,
    around: Callable[[Passage, int], Sequence[Passage]],
    distance: int,
    is_taken: Callable[[Passage], bool],
) -> Iterator[Passage]:
    yield from hits[:top_k]
    best = [hit for hit in hits[:top_k] if is_taken(hit)]
    beside = [{p.position: p for p in around(hit, distance)} for hit in best]
    for step in range(1, _NEAR + 1):
        for hit, others in zip(best, beside, strict=True):
            near = (others.get(hit.position + step), others.get(hit.position - step))
            yield from (p for p in near if p is not None and p.section == hit.section)
    yield from hits[top_k:]
    for step in range(1, distance + 1):
        for hit, others in zip(best, beside, strict=True):
            near = (others.get(hit.position + step), others.get(hit.position - step))
            yield from (p for p in near if p is not None)


class _Filling:
    """Passages that are taken while there is room; estimated first, then counted."""

    def __init__(self, measure: Measure, budget: int, *, is_merged: bool) -> None:
        self._measure, self._budget, self._is_merged = measure, budget, is_merged
        self._order = arrange if is_merged else in_order
        self._costs: dict[str, int] = {}
        self._cut: str | None = None
        self.taken: list[Passage] = []
        self.tokens = measure.prompt([])

    def fill(self, offered: Iterator[Passage]) -> None:
        """Take what fits, the first first."""
        waiting = offered
        rejected: list[Passage] = []
        for _ in range(3):  # neighbours share a header, so a count finds room the estimates missed
            rejected = self._estimated(waiting)
            self._count()
            waiting = iter([*rejected, *offered])
        for passage in rejected[:_MISSES]:
            if self._budget - self.tokens < self._cost(passage) - _HEADER:
                continue
            if (tokens := self._with(passage)) <= self._budget:
                self.taken, self.tokens = [*self.taken, passage], tokens
        if self._is_merged:
            self._fill_up(rejected)

    def _estimated(self, offered: Iterator[Passage]) -> list[Passage]:
        """Take what should fit; returns what should not."""
        room, misses = self._budget - self.tokens, 0
        held = {p.id for p in self.taken}
        rejected: list[Passage] = []
        for passage in offered:
            if passage.id in held:
                continue
            held.add(passage.id)
            if (cost := self._cost(passage)) <= room:
                self.taken.append(passage)
                room, misses = room - cost, 0
            else:
                rejected.append(passage)
                misses += 1
            if misses == _MISSES:
                break
        return rejected

    def holds(self, passage: Passage) -> bool:
        """Whether a passage was taken."""
        return any(p.id == passage.id for p in self.taken)

    def _cost(self, passage: Passage) -> int:
        if passage.id not in self._costs:
            self._costs[passage.id] = self._measure.text(passage.text) + _HEADER
        return self._costs[passage.id]

    def _count(self) -> None:
        self.tokens = self._measure.prompt(self._order(self.taken))
        while self.taken and self.tokens > self._budget:
            self.taken.pop()
            self.tokens = self._measure.prompt(self._order(self.taken))

    def _with(self, passage: Passage) -> int:
        return self._measure.prompt(self._order([*self.taken, passage]))

    def _fill_up(self, rejected: Sequence[Passage]) -> None:
        """Take as many sentences of the best passage that is left as fit."""
        held = {p.id for p in self.taken}
        for passage in [p for p in rejected if p.id not in held][:1]:
            parts = sentences(passage.text)[:-1]
            while parts:
                text = "".join(parts).rstrip()
                room = self._budget - self.tokens
                n_tokens = self._measure.text(text)
                if n_tokens < _LEAST_CUT:
                    return
                begun = replace(passage, text=text)
                if n_tokens <= room and (tokens := self._with(begun)) <= self._budget:
                    self.taken, self.tokens = [*self.taken, begun], tokens
                    self._cut = passage.id
                    return
                parts = parts[: min(len(parts) - 1, len(parts) * room // n_tokens + 1)]

    def left_out(self, wanted: Sequence[Passage]) -> tuple[LeftOut, ...]:
        """Those of `wanted` that were not taken, or not whole, and why."""
        held = {p.id for p in self.taken}
        return tuple(
            LeftOut(p, _CUT if p.id == self._cut else _NO_ROOM)
            for p in wanted
            if p.id not in held or p.id == self._cut
        )


def in_order(passages: Sequence[Passage]) -> list[Passage]:
    """Passages by document and position."""
    return sorted(passages, key=lambda p: (p.path, p.position))


def arrange(passages: Sequence[Passage]) -> list[Passage]:
    """Passages by document and position, neighbours under one heading merged, up to four."""
    ordered = in_order(passages)
    merged: list[Passage] = []
    last_position, n_merged = -1, 0
    for passage in ordered:
        previous = merged[-1] if merged else None
        if (
            previous is not None
            and n_merged < _MOST_MERGED
            and previous.path == passage.path
            and previous.section == passage.section
            and passage.position == last_position + 1
        ):
            merged[-1] = _merged(previous, passage)
            n_merged += 1
        else:
            merged.append(passage)
            n_merged = 1
        last_position = passage.position
    return merged


def _merged(first: Passage, second: Passage) -> Passage:
    pages = first.pages
    if first.pages and second.pages:
        pages = (first.pages[0], second.pages[1])
    return replace(
        first,
        text=f"{first.text}\n{second.text}",
        pages=pages,
        score=_best(first.score, second.score),
        keyword_score=_best(first.keyword_score, second.keyword_score),
        rerank_score=_best(first.rerank_score, second.rerank_score),
    )


def _best(first: float | None, second: float | None) -> float | None:
    return max((s for s in (first, second) if s is not None), default=None)
