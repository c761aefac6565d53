"""Prompts put together from passages that were each computed on their own.

The keys and values of a passage are computed once, after the tokens that come before the first
passage, and kept. A prompt of known passages in any order then needs no computing but its end: each
passage's copy is moved to its place, which for its keys means turning them by the difference of
positions. A passage so placed has not seen the ones before it, as in Block-Attention
(arXiv:2409.15355) and TurboRAG (arXiv:2410.07590); what follows sees them all.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from mixtral_rag.engines import Cancellation
from mixtral_rag.engines.llama_context import LlamaContext, NoRoomError
from mixtral_rag.engines.llama_states import PromptStates

_log = logging.getLogger("mixtral_rag.llamacpp")
_TRIES = 3  # files found damaged are computed again
Ids = tuple[int, ...]


class Passages:
    """States of passages: on the disk where there is a folder, and else in memory.

    Args:
        disk: the files; None keeps them in memory.
        max_bytes: most bytes of memory, for those that are not on the disk.
    """

    def __init__(self, disk: PromptStates | None, max_bytes: int) -> None:
        self._disk, self._max_bytes = disk, max_bytes
        self._held: OrderedDict[Ids, Any] = OrderedDict()  # the latest used last

    def knows(self, ids: Ids) -> bool:
        """Whether there is a state of exactly this prompt."""
        return ids in self._held or (
            self._disk is not None and self._disk.of_passage(ids) is not None
        )

    def keep(self, context: LlamaContext) -> None:
        """Keep what the context holds, one passage after the common beginning."""
        if self._disk is not None:
            self._disk.keep_passage(context)
        self._held[tuple(context.held)] = context.copy_state()

    def place(self, context: LlamaContext, ids: Ids, n_prefix: int) -> bool:
        """Put the passage that `ids` end with after what the context holds."""
        if ids not in self._held:
            return self._disk is not None and self._disk.place(context, ids, n_prefix)
        self._held.move_to_end(ids)
        context.place(self._held[ids], ids, n_prefix)
        return True

    def begin(self, context: LlamaContext, ids: Ids) -> None:
        """Let the context hold the common beginning, which is part of any passage's state."""
        if ids in self._held:
            context.take_state(self._held[ids], ids, len(ids))
        elif self._disk is not None:
            self._disk.read_passage(context, ids)

    def trim(self) -> None:
        """Hold to the budget; with a folder nothing stays in memory."""
        most = 0 if self._disk is not None else self._max_bytes
        while self._held and sum(map(len, self._held.values())) > most:
            self._held.popitem(last=False)


class Composer:
    """A context that computes one prompt, some of it from passages.

    Args:
        context: does the work.
        passages: what is known.
        spans: first token and end of each passage in the prompt, one right after the other.
        n_again: first tokens of each passage but the first that are computed again where it
            stands, so that they see the passages before it. These matter most (EPIC,
            arXiv:2410.15332); tests/benchmarks/apart.py measures what it gains and costs.
    """

    def __init__(
        self,
        context: LlamaContext,
        passages: Passages,
        spans: Sequence[tuple[int, int]],
        n_again: int = 0,
    ) -> None:
        self._context, self._passages, self._spans = context, passages, spans
        self._n_again = n_again

    def sample(self, chain: Any, look: Callable[[Any], None] | None = None) -> int:
        """See `LlamaContext.sample`."""
        return self._context.sample(chain, look)

    def advance(self, ids: Sequence[int], cancel: Cancellation) -> int:
        """See `LlamaContext.advance`."""
        computed = 0
        if not self._context.is_at_end_of(ids):
            computed = self._compose(ids, cancel)
        return max(0, self._context.advance(ids, cancel, goes_on=True) - computed)

    def _compose(self, ids: Sequence[int], cancel: Cancellation) -> int:
        """Place the passages; returns how many tokens had to be computed for it."""
        context, end = self._context, self._spans[-1][1]
        if context.n_plain is not None and list(context.held[:end]) == list(ids[:end]):
            return 0  # the same passages, as in the next turn of a conversation
        prefix = tuple(ids[: self._spans[0][0]])
        parts = [(*prefix, *ids[start:stop]) for start, stop in self._spans]
        computed = 0
        try:
            for _ in range(_TRIES):
                computed += self._hold(prefix, parts, cancel)
                computed += self._compute(parts, len(prefix), cancel)
                context.forget(len(prefix))
                again, is_placed = self._place(parts, len(prefix), cancel)
                computed += again
                if is_placed:
                    break
        finally:
            self._passages.trim()
        return computed

    def _hold(self, prefix: Ids, parts: Sequence[Ids], cancel: Cancellation) -> int:
        """Hold the common beginning alone; returns how many tokens had to be computed.

        It is computed by itself, never as part of another prompt: what a passage's numbers are does
        not depend on what was asked before.
        """
        context = self._context
        if context.n_plain != len(prefix) or tuple(context.held[: len(prefix)]) != prefix:
            context.leave()
            for part in parts:
                if self._passages.knows(part):
                    self._passages.begin(context, part)
                    break
        if not context.held and prefix:
            context.advance(prefix, cancel, goes_on=True)
            return len(prefix)
        context.forget(len(prefix))
        return 0

    def _compute(self, parts: Sequence[Ids], n_prefix: int, cancel: Cancellation) -> int:
        """Compute the passages that are not known, each after the common beginning."""
        computed = 0
        for part in parts:
            if not self._passages.knows(part):
                self._context.forget(n_prefix)
                self._context.advance(part, cancel, goes_on=True)
                computed += len(part) - n_prefix
                self._passages.keep(self._context)
        return computed

    def _place(self, parts: Sequence[Ids], n_prefix: int, cancel: Cancellation) -> tuple[int, bool]:
        """Place all passages; how many tokens were computed again for it, and whether it was done.

        It is not where a passage could not be read, which is then gone.
        """
        context, computed = self._context, 0
        try:
            for part in parts:
                begin = n_prefix
                if self._n_again and len(context.held) > n_prefix:
                    begin = max(n_prefix, min(n_prefix + self._n_again, len(part) - 1))
                if begin > n_prefix:
                    fresh = [*context.held, *part[n_prefix:begin]]
                    if len(fresh) > context.n_ctx:
                        raise NoRoomError
                    computed += len(fresh) - context.advance(fresh, cancel, goes_on=True)
                if not self._passages.place(context, part, begin):
                    return computed, False
        except NoRoomError:
            _log.warning("the window is too full to place all passages; the rest is computed")
        return computed, True
