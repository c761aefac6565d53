"""One answer among those that llama.cpp computes together, and their batch."""

import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from mixtral_rag.engines.llama_handle import Handle
from mixtral_rag.engines.llama_library import load
from mixtral_rag.engines.llama_states import common_prefix

AHEAD = 256  # tokens of an answer that room is kept for
_LEAST = 64  # tokens, for cells to be shared


class Seat:
    """One answer among those computed together.

    Args:
        lock: guards what changes.
        ids: its tokens, a list that grows.
        n_most: tokens of prompt and answer at most.
        choose: the next token, by the logits of the last.
        is_plain: whether it holds what its tokens alone would give.
    """

    def __init__(
        self,
        lock: threading.Lock,
        ids: Sequence[int],
        n_most: int,
        choose: Callable[["Row"], int],
        *,
        is_plain: bool = False,
    ) -> None:
        self.sequence = -1  # its number in llama.cpp
        self.ids, self._n_most = ids, n_most
        self.n_held = len(ids) - 1  # in the cache; the last token is not
        self.token: int | None = None  # waits to be computed
        self.made: int | None = None
        self.choose, self.is_plain = choose, is_plain
        self.failure: BaseException | None = None
        self.is_computing = self.is_lost = False
        self.since = time.monotonic()  # that its reader has had the last token
        self.changed = threading.Condition(lock)

    @property
    def n_wanted(self) -> int:
        """Cells it needs soon."""
        return min(self._n_most, self.n_held + AHEAD)

    def wake(self) -> None:
        """Let its reader look again."""
        with self.changed:
            self.changed.notify()


class Row:
    """The logits of one token of the batch that was last computed; -1 is the last."""

    def __init__(self, handle: Handle, vocab: Any, number: int = -1) -> None:
        self._handle, self._vocab, self._number = handle, vocab, number

    def sample(self, chain: Any, look: Callable[[Any], None] | None = None) -> int:
        """See `LlamaContext.sample`."""
        lib = load()
        with self._handle.using() as pointer:
            if look is not None:
                import numpy as np

                logits = lib.llama_get_logits_ith(pointer, self._number)
                look(np.ctypeslib.as_array(logits, (lib.llama_vocab_n_tokens(self._vocab),)))
            return int(lib.llama_sampler_sample(chain, pointer, self._number))


class Batch:
    """A batch of llama.cpp with the last token of each seat, and logits for all.

    Args:
        most: seats.
    """

    def __init__(self, most: int) -> None:
        lib = load()
        self._batch = lib.llama_batch_init(most, 0, 1)
        # At exit the thread that computes may still be using it.
        weakref.finalize(self, lib.llama_batch_free, self._batch).atexit = False

    def of(self, seats: Sequence[Seat]) -> Any:
        """The batch, good until the next one is asked for."""
        batch = self._batch
        batch.n_tokens = len(seats)
        for i, seat in enumerate(seats):
            batch.token[i], batch.pos[i] = seat.token, seat.n_held
            batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, seat.sequence, 1
        return batch


def closest(seat: Seat, others: Sequence[Seat]) -> tuple[int, int]:
    """The sequence that begins with most of the same tokens as `seat`, and how many."""
    if not seat.is_plain:
        return 0, 0
    held = seat.ids[: seat.n_held]
    shared = [
        (common_prefix(held, other.ids[: other.n_held]), other.sequence)
        for other in others
        if other.is_plain
    ]
    n, sequence = max(shared, default=(0, 0))
    return (sequence, n) if n >= _LEAST else (0, 0)


def n_cells(prompts: Sequence[tuple[Sequence[int], int]]) -> int:
    """Cells for prompts of so many tokens each, whose common beginnings share theirs."""
    seen: list[Sequence[int]] = []
    total = 0
    for ids, n in prompts:
        total += n - max((common_prefix(ids, other) for other in seen), default=0)
        seen.append(ids)
    return total
