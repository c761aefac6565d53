"""States of prompts for one model in llama.cpp: on the disk (`mixtral_rag.kvstore`) and aside."""

import functools
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mixtral_rag.engines.llama_build import llama_build
from mixtral_rag.kvstore import BLOCK, KVStore, State
from mixtral_rag.weights.gguf import GGUFHeader

if TYPE_CHECKING:
    from mixtral_rag.engines.llama_context import LlamaContext

LEAST_BATCH = 64  # tokens, with flash attention; see `batch_sizes`
LEAST_PLAIN = 8  # without it
_SHORT = 32  # tokens that may well have been computed one by one
_GROUP = 4  # tokens that llama.cpp multiplies with quantised weights at once
_LEAST = 128  # tokens: to compute so few again is quicker than to keep them
_SHARE = 0.1  # of a state that must be new, or the same pages would be kept with every question
_SAMPLE = 4096  # bytes of a tensor's beginning, middle and end


class PromptStates:
    """What a context takes from the disk before it computes, and leaves there afterwards.

    Args:
        store: the files.
        header: of the model's file.
        options: what else decides the numbers in the cache, such as its type.
    """

    def __init__(self, store: KVStore, header: GGUFHeader, *options: object) -> None:
        self._store, self._header, self._options = store, header, options

    @functools.cached_property
    def _key(self) -> str:
        what = (fingerprint(self._header), llama_build().identity, *self._options)
        return hashlib.sha256(repr(what).encode()).hexdigest()[:32]

    def restore(self, context: "LlamaContext", ids: Sequence[int]) -> None:
        """Let the context hold more of the first of `ids`, where the disk has more of them."""
        held = len(context.held)
        fresh = context.least_batch
        if len(ids) - fresh <= held + _LEAST:
            return
        found = self._store.find(
            self._key, ids[:-fresh], more_than=held + _LEAST, room=context.together.room
        )
        if found is None:
            return
        state, shared = found
        self._store.load(state, lambda path: context.read_state(path, ids[:shared]))

    def of_passage(self, ids: Sequence[int]) -> State | None:
        """The state of a prompt of exactly these tokens."""
        return self._store.exact(self._key, ids)

    def read_passage(self, context: "LlamaContext", ids: Sequence[int]) -> None:
        """Let the context hold exactly these tokens, if the disk has them."""
        if (state := self.of_passage(ids)) is not None:
            self._store.load(state, lambda path: context.read_state(path, ids))

    def place(self, context: "LlamaContext", ids: Sequence[int], n_prefix: int) -> bool:
        """Place the passage after the first `n_prefix` tokens, if the disk has it."""
        state = self.of_passage(ids)
        return state is not None and self._store.load(
            state, lambda path: context.place(path, ids, n_prefix)
        )

    def keep_passage(self, context: "LlamaContext") -> None:
        """Put what the context holds on the disk."""
        self._save(context, is_lone=True)

    def _save(self, context: "LlamaContext", *, is_lone: bool) -> None:
        self._store.save(
            self._key, context.held, context.write_state,
            name=self._header.path.name, is_lone=is_lone, in_background=True,
        )  # fmt: skip

    def keep(self, context: "LlamaContext") -> None:
        """Put what the context holds on the disk, where enough of it is not there."""
        held = context.held
        least = max(_LEAST, _SHARE * len(held))
        if len(held) < least:
            return
        if len(held) - self._store.covered(self._key, held) < least:
            return
        self._save(context, is_lone=False)


class MemoryStates:
    """States of other prompts in memory, while a context computes one of them.

    A copy takes milliseconds and only the tokens there are, where a context of its own for every
    conversation would take a whole window each.

    Args:
        max_bytes: most bytes of all together; the longest unused go first.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._states: list[tuple[list[int], Any]] = []  # the latest used last

    def switch(self, context: "LlamaContext", ids: Sequence[int], shared: int) -> None:
        """Copy what the context is about to lose, and let it go on from a copy that has more.

        Args:
            context: holds some prompt.
            ids: what it would best hold, to compute the rest.
            shared: tokens at the beginning of both.
        """
        best = self._best(ids, shared + _LEAST)
        if context.n_plain is None:
            self.put_aside(context, context.held, shared)
        if best is None:
            return
        (known, state), n = best
        context.take_state(state, known, n)
        if self._n_bytes() + len(state) <= self._max_bytes:
            self._states.append((known, state))

    def _best(self, ids: Sequence[int], at_least: int) -> tuple[tuple[list[int], Any], int] | None:
        """The copy with most of the first of `ids`, taken out, and how many it has."""
        shared = [common_prefix(known, ids) for known, _ in self._states]
        most = max(shared, default=0)
        return (self._states.pop(shared.index(most)), most) if most >= at_least else None

    def put_aside(
        self, context: "LlamaContext", held: Sequence[int], keeps: int, sequence: int = 0
    ) -> None:
        """Copy what a sequence of the context holds, unless that is little or known.

        Args:
            context: has the sequence.
            held: its tokens.
            keeps: how many of the first are not about to be lost.
            sequence: its number.
        """
        if not self._max_bytes or len(held) - keeps < _LEAST:
            return
        shared = [common_prefix(known, held) for known, _ in self._states]
        if any(n > len(held) - BLOCK for n in shared):
            return
        state = context.copy_state(sequence, self._max_bytes)
        if state is None:
            return
        others = zip(self._states, shared, strict=True)
        self._states = [other for other, n in others if n <= len(other[0]) - _LEAST]
        self._states.append((list(held), state))
        while self._n_bytes() > self._max_bytes:
            del self._states[0]

    def _n_bytes(self) -> int:
        return sum(len(state) for _, state in self._states)


def batch_sizes(n: int, most: int, least: int) -> list[int]:
    """How to cut `n` tokens into batches of at most `most`, the last one not below `least`.

    On a CPU, flash attention over an f16 cache computes batches of `LEAST_BATCH` tokens and more in
    another way than smaller ones, with logits that differ by up to 0.8; among the larger ones every
    cut gives the same, bit for bit. Without flash attention the same holds from 8 tokens on, for
    cuts between groups of 4: a Q4_K model's rest of 1 to 3 tokens is multiplied in another way. So
    what follows a restored prefix is what it is without one.
    """
    sizes = [most] * (n // most) + ([n % most] if n % most else [])
    if len(sizes) > 1 and sizes[-1] < least < most // 2:
        more = -(-(least - sizes[-1]) // _GROUP) * _GROUP
        sizes[-2:] = [sizes[-2] - more, sizes[-1] + more]
    return sizes


def whole_groups(n: int, n_first: int) -> int:
    """How many of `n` shared tokens to keep, so that the cut is one of those of `batch_sizes`.

    Args:
        n: tokens at the beginning of what is held and of what is wanted.
        n_first: how many of what is held were computed as one batch with the first. Where few are
            shared, the others may have been computed as small batches, and are not kept.
    """
    if n < _SHORT:
        n = min(n, n_first) if n_first >= LEAST_PLAIN else 0
    return n // _GROUP * _GROUP


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many of the first tokens two prompts share."""
    known, most = 0, min(len(a), len(b))  # equal up to `known`, not up to more than `most`
    while known < most:
        middle = (known + most + 1) // 2
        if list(a[known:middle]) == list(b[known:middle]):
            known = middle
        else:
            most = middle - 1
    return known


def fingerprint(header: GGUFHeader) -> str:
    """A hash of a model file: all metadata, and samples of every tensor.

    A whole hash of 26 GB takes half a minute; fine-tunes differ in every tensor.
    """
    digest = hashlib.sha256()
    with header.path.open("rb") as file:
        digest.update(file.read(header.data_offset))
        for tensor in header.tensors:
            start, size = header.data_offset + tensor.offset, tensor.size or 0
            for place in (0, max(0, size // 2 - _SAMPLE), max(0, size - _SAMPLE)):
                file.seek(start + place)
                digest.update(file.read(min(_SAMPLE, size - place)))
    return digest.hexdigest()
