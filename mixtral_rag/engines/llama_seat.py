"""One answer among those that llama.cpp computes together, and their batch."""

import ctypes
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from mixtral_rag.engines.llama_handle import Handle
from mixtral_rag.engines.llama_library import load
from mixtral_rag.engines.llama_states import common_prefix

AHEAD = 256  # tokens of an answer that room is kept for


class Seat:
    """One answer among those computed together.

    Args:
        lock: guards what changes.
        sequence: its number in llama.cpp.
        ids: its tokens, a list that grows.
        n_most: tokens of prompt and answer at most.
        choose: the next token, by the logits of the last.
    """

    def __init__(
        self,
        lock: threading.Lock,
        sequence: int,
        ids: Sequence[int],
        n_most: int,
        choose: Callable[["Row"], int],
    ) -> None:
        self.sequence, self.ids, self._n_most = sequence, ids, n_most
        self.n_held = len(ids) - 1  # in the cache; the last token is not
        self.token: int | None = None  # waits to be computed
        self.made: int | None = None
        self.choose = choose
        self.is_plain = False  # whether it holds what its tokens alone would give
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


def rows(batch: Sequence[Seat]) -> Any:
    """A batch of llama.cpp with the last token of each seat, and logits for all."""
    lib, n = load(), len(batch)
    sequences = [(lib.llama_seq_id * 1)(seat.sequence) for seat in batch]
    pointers = (ctypes.POINTER(lib.llama_seq_id) * n)(
        *(ctypes.cast(s, ctypes.POINTER(lib.llama_seq_id)) for s in sequences)
    )
    made = lib.llama_batch(
        n_tokens=n,
        token=(lib.llama_token * n)(*(seat.token for seat in batch)),
        pos=(lib.llama_pos * n)(*(seat.n_held for seat in batch)),
        n_seq_id=(ctypes.c_int32 * n)(*([1] * n)),
        seq_id=pointers,
        logits=(ctypes.c_int8 * n)(*([1] * n)),
    )
    made.sequences = sequences  # kept alive with it
    return made


def n_cells(prompts: Sequence[tuple[Sequence[int], int]]) -> int:
    """Cells for prompts of so many tokens each, whose common beginnings share theirs."""
    seen: list[Sequence[int]] = []
    total = 0
    for ids, n in prompts:
        total += n - max((common_prefix(ids, other) for other in seen), default=0)
        seen.append(ids)
    return total
