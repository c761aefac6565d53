"""Which passages an answer rests on, with words that really stand in them."""

import math
from collections.abc import Sequence

from mixtral_rag.claims import NUMBERS, numbers_in
from mixtral_rag.language import sentences, terms
from mixtral_rag.types import Citation, Passage

_LONGEST_QUOTE = 240
_MOST_UNNUMBERED = 3
_LEAST_SHARED = 0.25  # of the answer's terms, for a passage the answer does not name


def cite(answer: str, question: str, passages: Sequence[Passage]) -> tuple[Citation, ...]:
    """The passages an answer names by number, else those that share most of its words.

    Numbers that no passage has are ignored. Each citation quotes the sentence of its passage that
    is nearest to the answer, word for word.
    """
    named = sorted(n for n in numbers_in(answer) if 1 <= n <= len(passages))
    said = terms(NUMBERS.sub("", answer))
    if not named:
        named = _nearest(said, passages)
    asked = terms(question)
    return tuple(Citation(n, passages[n - 1], quote(passages[n - 1], said, asked)) for n in named)


def quote(passage: Passage, said: set[str], asked: set[str]) -> str:
    """The sentence of a passage that is nearest to an answer and its question.

    It stands in the passage word for word, shortened at its end if long. The answer's terms count
    twice: a heading often repeats the question.
    """
    lines = [s.strip() for s in sentences(passage.text)]
    lines = [s for s in lines if s] or [passage.text.strip()]
    best = max(lines, key=lambda s: _closeness(terms(s), said, asked))
    return best[:_LONGEST_QUOTE]


def _nearest(said: set[str], passages: Sequence[Passage]) -> list[int]:
    if not said:
        return []
    shares = [(len(said & terms(p.text)) / len(said), n) for n, p in enumerate(passages, start=1)]
    best = sorted((s for s in shares if s[0] >= _LEAST_SHARED), reverse=True)
    return sorted(n for _, n in best[:_MOST_UNNUMBERED])


def _closeness(held: set[str], said: set[str], asked: set[str]) -> float:
    return (2 * len(held & said) + len(held & asked)) / math.sqrt(len(held) + 8)
