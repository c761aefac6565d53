"""Answers computed together: the next token of each in one batch of llama.cpp.

One generation at a time has the turn: it reads its prompt in the first sequence of the cache. Where
another one waits, it gives the turn up and takes a seat, a sequence of its own that shares the
cells of what was read. A thread then computes the last tokens of all seats in one batch, and again
for each next token: so do servers for GPUs (Orca, OSDI 2022), and every weight is fetched once for
all. Prompts are read between the steps, batch by batch.
"""

import ctypes
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mixtral_rag.engines import Cancellation, Interrupted
from mixtral_rag.engines.llama_handle import Handle
from mixtral_rag.engines.llama_library import load, release_team
from mixtral_rag.errors import GenerationError

NO_SLOT, ABORTED = 1, 2  # what llama_decode returns
GUESTS = 2  # the first seat's sequence, after that of the turn and the one that takes in passages
AHEAD = 256  # tokens of its answer that room is kept for
_PATIENCE = 0.003  # seconds that a step waits for a seat whose reader has just got a token
_PATIENCE_OF_PROMPT = 0.01  # seconds that a prompt waits for a step to begin
_GRACE = 0.05  # seconds a reader may take before another one may have its seat


class SeatLostError(Exception):
    """The cells of a seat were needed; its tokens have to be computed again."""


class Seat:
    """One answer among those computed together."""

    def __init__(self, lock: threading.Lock, sequence: int, n_held: int, n_most: int) -> None:
        self.sequence, self.n_held, self._n_most = sequence, n_held, n_most
        self.token: int | None = None  # waits to be computed
        self.made: int | None = None
        self.choose: Callable[[Row], int]
        self.failure: Exception | None = None
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


class Together:
    """The seats of one context, and the thread that computes for them while there are any.

    Args:
        handle: the context.
        vocab: of its model.
        n_ctx: cells of its cache.
        most: seats; below 2 there are none.
    """

    def __init__(self, handle: Handle, vocab: Any, n_ctx: int, most: int) -> None:
        self._handle, self._vocab, self._n_ctx = handle, vocab, n_ctx
        self._free = list(range(GUESTS, GUESTS + most)) if most > 1 else []
        self._seats: list[Seat] = []
        self._lock = threading.Lock()
        self._work, self._idle = (threading.Condition(self._lock) for _ in range(2))
        self._is_computing = self._is_alone = False
        self._n_steps = 0
        self._thread: threading.Thread | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nobody has a seat."""
        return not self._seats

    # --- for who has the turn --------------------------------------------------------------------

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Within the block no step is computed, so the logits stay those of the turn's tokens."""
        try:
            self._stop_steps()
            yield
        finally:
            self._let_steps()

    def let_step(self) -> None:
        """Within `alone`, between two batches of a prompt: let the seats have a token each."""
        if self.is_empty:
            return
        before = self._n_steps
        self._let_steps()
        with self._lock:
            self._idle.wait_for(lambda: self._n_steps > before, _PATIENCE_OF_PROMPT)
        self._stop_steps()

    def _stop_steps(self) -> None:
        with self._lock:
            self._is_alone = True
            self._work.notify()  # so that the thread gives back its team
            while self._is_computing:
                self._idle.wait()

    def _let_steps(self) -> None:
        if self._seats:
            release_team()
        with self._lock:
            self._is_alone = False
            self._work.notify()

    def wait_for_room(self, n: int, cancel: Cancellation) -> None:
        """Wait until `n` tokens fit beside the seats.

        Raises:
            Interrupted: `cancel` was thrown meanwhile.
        """
        with cancel.calling(self._wake), self._lock:
            while self._seats and sum(s.n_wanted for s in self._seats) + n > self._n_ctx:
                if cancel.cancelled:
                    raise Interrupted
                if not self._drop_slow():
                    self._idle.wait(_GRACE)

    def drop_one(self) -> bool:
        """Take the seat that was taken last, for its cells; False where there is none."""
        with self._lock:
            return bool(self._seats) and self._drop(self._seats[-1])

    def join(self, n_held: int, n_most: int, choose: Callable[[Row], int]) -> Seat | None:
        """A seat that goes on from what the turn's sequence holds; None where none is free.

        Args:
            n_held: the tokens of that sequence.
            n_most: tokens of prompt and answer at most.
            choose: the next token, by the logits of the last.
        """
        with self._lock:
            if not self._free and not self._drop_slow():
                return None
            seat = Seat(self._lock, self._free.pop(), n_held, n_most)
            seat.choose = choose
            lib = load()
            with self._handle.using() as pointer:
                memory = lib.llama_get_memory(pointer)
                lib.llama_memory_seq_cp(memory, 0, seat.sequence, -1, -1)
            self._seats.append(seat)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="together", daemon=True)
                self._thread.start()
        return seat

    # --- for who has a seat ----------------------------------------------------------------------

    def next(self, seat: Seat, token: int, cancel: Cancellation) -> int:
        """The token after `token`, which follows all that the seat holds.

        Raises:
            Interrupted: `cancel` was thrown meanwhile.
            SeatLostError: the cells were needed.
            GenerationError: llama.cpp failed.
        """
        with cancel.calling(seat.wake), self._lock:
            seat.token = token
            self._work.notify()
            while seat.made is None:
                if seat.failure is not None:
                    raise seat.failure
                if seat.is_lost:
                    raise SeatLostError
                if cancel.cancelled and not seat.is_computing:
                    raise Interrupted
                seat.changed.wait()
            made, seat.made = seat.made, None
            return made

    def leave(self, seat: Seat) -> None:
        """Give the seat back."""
        with self._lock:
            if not seat.is_lost:
                self._drop(seat)

    def _drop_slow(self) -> bool:
        """Take a seat whose reader has stopped reading."""
        now = time.monotonic()
        slow = [s for s in self._seats if s.token is None and now - s.since > _GRACE]
        return bool(slow) and self._drop(slow[0])

    def _drop(self, seat: Seat) -> bool:
        seat.is_lost = True
        self._seats.remove(seat)
        self._free.append(seat.sequence)
        lib = load()
        try:
            with self._handle.using() as pointer:
                memory = lib.llama_get_memory(pointer)
                lib.llama_memory_seq_rm(memory, seat.sequence, -1, -1)
        except Interrupted:
            pass  # freed, and the cells with it
        for condition in (seat.changed, self._idle, self._work):
            condition.notify_all()
        return True

    def _wake(self) -> None:
        with self._lock:
            self._idle.notify_all()

    # --- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        while batch := self._next_batch():
            self._step(batch)
        release_team()

    def _next_batch(self) -> list[Seat]:
        """The seats to compute a token for, once all have one or are slow; none at the end."""
        has_team = True
        with self._lock:
            while self._seats:
                ready = [s for s in self._seats if s.token is not None]
                late = max((s.since for s in self._seats if s.token is None), default=0.0)
                wait = late + _PATIENCE - time.monotonic()
                if ready and wait <= 0 and not self._is_alone:
                    for seat in ready:
                        seat.is_computing = True
                    self._is_computing = True
                    return ready
                if has_team and (self._is_alone or not ready):
                    has_team = False
                    release_team()
                self._work.wait(wait if ready and wait > 0 else None)
            self._thread = None
            return []

    def _step(self, batch: Sequence[Seat]) -> None:
        failure: Exception | None = None
        status, chosen = -1, []
        try:
            with self._handle.using() as pointer:
                status = load().llama_decode(pointer, rows(batch))
            if status == 0:
                chosen = [self._choose(number, seat) for number, seat in enumerate(batch)]
            elif status not in (NO_SLOT, ABORTED):
                failure = GenerationError(f"llama.cpp failed to compute tokens (status {status})")
        except Exception as error:  # noqa: BLE001 - raised again by all that have a seat
            failure = error
        with self._lock:
            self._is_computing = False
            self._n_steps += 1
            for seat in batch:
                seat.is_computing = False
            for seat, made in zip(batch, chosen, strict=False):
                seat.made, seat.token, seat.since = made, None, time.monotonic()
                seat.n_held += 1
            for seat in batch:
                seat.failure = seat.failure or failure
                seat.changed.notify()
            if status == NO_SLOT and self._seats:
                self._drop(self._seats[-1])
            self._idle.notify_all()

    def _choose(self, number: int, seat: Seat) -> int | None:
        try:
            return seat.choose(Row(self._handle, self._vocab, number))
        except Exception as error:  # noqa: BLE001 - raised again by the one that has the seat
            seat.failure = error
            return None


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
