"""Blocks of a document to passages an embedder sees whole."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from mixtral_rag.ingest.readers import Block
from mixtral_rag.language import sentences


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


def split(blocks: Iterable[Block], count: Callable[[str], int], *, max_tokens: int) -> list[Window]:
    """Cut blocks into windows of whole sentences, none across a heading.

    A window takes up to `max_tokens`, counted by `count`, and those under one heading are about
    equally long; a longer sentence is cut where it must be. Text runs on from page to page, so a
    window may span two.
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
    for text in parts:
        yield from _fitted(text, block.page, count, max_tokens)


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
    """Parts of about equal length: a short rest would be found by its heading and say little."""
    whole = list(run)
    length = sum(s.tokens for s in whole)
    enough = length / max(1, math.ceil(length / max_tokens))
    part: list[_Sentence] = []
    total = 0
    for sentence in whole:
        if part and (total >= enough or total + sentence.tokens > max_tokens):
            yield part
            part, total = [], 0
        part.append(sentence)
        total += sentence.tokens
    if part:
        yield part


def _window(part: list[_Sentence], section: tuple[str, ...]) -> Window:
    numbers = [s.page for s in part if s.page is not None]
    pages = (min(numbers), max(numbers)) if numbers else None
    return Window("".join(s.text for s in part).strip(), pages, section)
