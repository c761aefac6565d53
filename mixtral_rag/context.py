"""The context planner: which of the found passages the model reads, in what order."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from mixtral_rag.types import Passage


@dataclass(frozen=True, slots=True)
class Plan:
    """What goes into the prompt, and what does not.

    Args:
        passages: what the model reads: neighbours merged, in document order.
        left_out: found but not sent, for want of room.
        tokens: tokens of the whole prompt.
        budget: most tokens the prompt may take.
    """

    passages: tuple[Passage, ...]
    left_out: tuple[Passage, ...]
    tokens: int
    budget: int


def plan_context(
    hits: Sequence[Passage], count: Callable[[Sequence[Passage]], int], *, budget: int
) -> Plan:
    """Take passages best first while the whole prompt stays within `budget` tokens.

    Args:
        hits: found passages, best first.
        count: tokens of the whole prompt with the given passages.
        budget: most tokens the prompt may take.

    A passage that does not fit is left out and smaller ones after it are still tried. What was
    taken is laid out by document and position, so that the same passages always give the same
    prompt, and passages that follow one another become one.
    """
    taken: list[Passage] = []
    left_out: list[Passage] = []
    for hit in hits:
        if count(arrange([*taken, hit])) <= budget:
            taken.append(hit)
        else:
            left_out.append(hit)
    passages = tuple(arrange(taken))
    return Plan(passages, tuple(left_out), count(passages), budget)


def arrange(passages: Sequence[Passage]) -> list[Passage]:
    """Passages by document and position, neighbours under one heading merged."""
    ordered = sorted(passages, key=lambda p: (p.path, p.position))
    merged: list[Passage] = []
    last_position = -1
    for passage in ordered:
        previous = merged[-1] if merged else None
        if (
            previous is not None
            and previous.path == passage.path
            and previous.section == passage.section
            and passage.position == last_position + 1
        ):
            merged[-1] = _merged(previous, passage)
        else:
            merged.append(passage)
        last_position = passage.position
    return merged


def _merged(first: Passage, second: Passage) -> Passage:
    pages = first.pages
    if first.pages and second.pages:
        pages = (first.pages[0], second.pages[1])
    scores = [s for s in (first.score, second.score) if s is not None]
    return replace(
        first,
        text=f"{first.text}\n{second.text}",
        pages=pages,
        score=max(scores, default=None),
    )
