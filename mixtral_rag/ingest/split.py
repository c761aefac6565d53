"""Blocks of a document to passages an embedder sees whole."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

from mixtral_rag.ingest.readers import Block
from mixtral_rag.language import sentences

_CUT = 0.5  # what a cut inside of a paragraph costs; an empty window would cost 1


@dataclass(frozen=True, slots=True)
class Window:
    """A passage before it has a document: its text, pages and headings."""

    text: str
    pages: tuple[int, int] | None
    section: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Sentence:
    text: str
    page: int | None
    tokens: int
    is_last: bool = False  # of its paragraph


def split(blocks: Iterable[Block], count: Callable[[str], int], *, max_tokens: int) -> list[Window]:
    """Cut blocks into windows of whole sentences, none across a heading.

    A window takes up to `max_tokens`, counted by `count`; a longer sentence is cut where it must
    be. Cuts come between paragraphs (blocks) as far as no window gets much shorter than others.
    Text runs on from page to page, so a window may span two.
    """
    windows: list[Window] = []
    for section, group in groupby(blocks, key=lambda b: b.section):
        run = (s for block in group for s in _sentences(block, count, max_tokens))
        windows += [_window(part, section) for part in _fill(run, max_tokens)]
    return [w for w in windows if w.text]


def _sentences(block: Block, count: Callable[[str], int], max_tokens: int) -> Iterator[_Sentence]:
    parts = sentences(block.text.strip())
    if parts:
        parts[-1] += "\n"
    for text in parts[:-1]:
        yield from _fitted(text, block.page, count, max_tokens)
    if parts:
        *before, last = _fitted(parts[-1], block.page, count, max_tokens)
        yield from before
        yield replace(last, is_last=True)


def _fitted(
    text: str, page: int | None, count: Callable[[str], int], max_tokens: int
) -> Iterator[_Sentence]:
    tokens = count(text)
    if tokens <= max_tokens or len(text) < 2:
        yield _Sentence(text, page, tokens)
        return
    middle = len(text) // 2
    space = text.rfind(" ", 0, middle)
    cut = space + 1 if space > middle // 2 else middle
    yield from _fitted(text[:cut], page, count, max_tokens)
    yield from _fitted(text[cut:], page, count, max_tokens)


def _fill(run: Iterable[_Sentence], max_tokens: int) -> Iterator[list[_Sentence]]:
    """The best way to cut: full windows, none much shorter, and between paragraphs if possible.

    A short rest would be found by its heading and say little, and half a paragraph is found less
    often than a whole one. Every window costs the square of its empty share, and a cut inside of a
    paragraph `_CUT`; the cheapest cuts are found from left to right.
    """
    whole = list(run)
    costs, begins = [0.0], [0]  # of the cheapest way to cut what is before a sentence
    for end in range(1, len(whole) + 1):
        total, best = 0, math.inf
        for begin in range(end - 1, -1, -1):
            total += whole[begin].tokens
            if total > max_tokens and begin < end - 1:
                break
            is_between = begin == 0 or whole[begin - 1].is_last
            empty = max(0.0, 1 - total / max_tokens)
            cost = costs[begin] + empty * empty + (0 if is_between else _CUT)
            if cost < best:
                best, from_ = cost, begin
        costs.append(best)
        begins.append(from_)
    cuts = [len(whole)]
    while cuts[-1]:
        cuts.append(begins[cuts[-1]])
    for begin, end in pairwise(reversed(cuts)):
        yield whole[begin:end]


def _window(part: list[_Sentence], section: tuple[str, ...]) -> Window:
    numbers = [s.page for s in part if s.page is not None]
    pages = (min(numbers), max(numbers)) if numbers else None
    return Window("".join(s.text for s in part).strip(), pages, section)
