"""The seats of answers that llama.cpp computes together, and the thread that computes for them."""

import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mixtral_rag.engines.llama_cells import GUESTS, SharedCells
from mixtral_rag.engines.llama_handle import Handle
from mixtral_rag.engines.llama_library import load, release_team
from mixtral_rag.engines.llama_seat import Batch, Row, Seat
from mixtral_rag.errors import GenerationError

_log = logging.getLogger("mixtral_rag.llamacpp")
NO_SLOT, ABORTED = 1, 2  # what llama_decode returns
_PATIENCE = 0.003  # seconds that a step waits at least for a seat whose reader has just got a token
_SHARE = 0.5  # of the time of a step that the next one waits for it
_PATIENCE_OF_PROMPT = 0.01  # seconds that a prompt waits for a step to begin
_LONGEST_WAIT = 1.0  # seconds, should a Ctrl-C have cost a wake-up
GRACE = 0.05  # seconds a reader may take before another one may have its seat


class Steps:
    """The seats of one context, and the thread that computes for them while there are any.

    Args:
        handle: the context of the turn.
        vocab: of its model.
        n_ctx: cells of its cache.
        most: seats; below 2 there are none.
        put_aside: keeps what a sequence holds, some tokens, before its cells are freed.
        own_cells: is called once, when the turn holds so many tokens and the first seat is taken.
            Without cells of their own, seats share those of the turn.
    """

    def __init__(
        self,
        handle: Handle,
        vocab: Any,
        n_ctx: int,
        most: int,
        put_aside: Callable[[Sequence[int], int], None],
        own_cells: Callable[[int], SharedCells | None],
    ) -> None:
        self._handle, self._vocab, self._n_ctx = handle, vocab, n_ctx
        self._put_aside, self._own_cells = weakref.WeakMethod(put_aside), own_cells
        self.cells = SharedCells(handle, n_ctx)
        self._is_decided = False
        self._batch = Batch(max(1, most))
        self._sequences = range(GUESTS, GUESTS + most if most > 1 else GUESTS)
        self._stale: list[Seat] = []  # were left, and still have cells
        self._left: deque[Seat] = deque()
        self._seats: list[Seat] = []
        self._lock = threading.Lock()
        self._work, self._idle = (threading.Condition(self._lock) for _ in range(2))
        self._is_computing = self._is_alone = self._is_crowded = self.is_full = False
        self._n_steps, self._step_seconds = 0, 0.0
        self._thread: threading.Thread | None = None

    @property
    def is_empty(self) -> bool:
        """Whether no seat has cells."""
        return not self._seats and not self._stale

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
        if not self._seats:
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
        self._clean()

    def _let_steps(self) -> None:
        self._is_alone = False  # first of all: Ctrl-C may come here
        if self._seats:
            release_team()
        with self._lock:
            self._work.notify()

    def _sweep(self) -> None:
        """Take the seats that were left, but for one that is being computed for."""
        for _ in range(len(self._left)):
            seat = self._left.popleft()
            if seat.is_computing:
                self._left.append(seat)
            elif seat in self._seats:
                self._drop(seat)

    def _drop_slow(self) -> bool:
        """Take a seat whose reader has stopped reading."""
        now = time.monotonic()
        slow = [s for s in self._seats if s.token is None and now - s.since > GRACE]
        for seat in slow[:1]:
            self._drop(seat)
        return bool(slow)

    def _drop(self, seat: Seat) -> None:
        seat.is_lost = True
        del seat.choose  # refers to the context
        self._stale.append(seat)  # before the other, so that it is always in one
        self._seats.remove(seat)
        self._is_crowded, self.is_full = self._is_crowded and bool(self._seats), False
        for condition in (seat.changed, self._idle, self._work):
            condition.notify_all()

    def _clean(self) -> None:
        """Free the cells of seats that were left; for who has the turn, or within a step."""
        while self._stale:
            seat = self._stale[0]
            put_aside = self._put_aside()
            is_whole = self.cells.n_held(seat.sequence) == seat.n_held
            if seat.is_plain and is_whole and put_aside is not None:
                try:
                    put_aside(seat.ids[: seat.n_held], seat.sequence)
                except MemoryError:
                    _log.warning("no memory to keep what was read for an answer")
            self.cells.forget(seat.sequence)
            del self._stale[0]

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
            while True:
                self._sweep()
                if not self._seats:
                    self._thread = None
                    return []
                ready = [s for s in self._seats if s.token is not None]
                late = max((s.since for s in self._seats if s.token is None), default=0.0)
                patience = max(_PATIENCE, _SHARE * self._step_seconds)
                wait = late + patience - time.monotonic()
                if ready and wait <= 0 and not self._is_alone:
                    for seat in ready:
                        seat.is_computing = True
                    self._is_computing = True
                    return ready
                if has_team and (self._is_alone or not ready):
                    has_team = False
                    release_team()
                self._work.wait(wait if ready and wait > 0 else _LONGEST_WAIT)

    def _step(self, batch: Sequence[Seat]) -> None:
        failure: BaseException | None = None
        status, chosen = -1, []
        started = time.monotonic()
        try:
            self._clean()
            started = time.monotonic()
            with self.cells.handle.using() as pointer:
                status = load().llama_decode(pointer, self._batch.of(batch))
            if status == 0:
                chosen = [self._choose(number, seat) for number, seat in enumerate(batch)]
            elif status not in (NO_SLOT, ABORTED):
                failure = GenerationError(
                    f"llama.cpp failed to compute {len(batch)} tokens (status {status})"
                )
        except BaseException as error:  # noqa: BLE001 - raised again by all that have a seat
            failure = error
        with self._lock:
            self._is_computing = False
            self._n_steps, self._step_seconds = self._n_steps + 1, time.monotonic() - started
            for seat, made in zip(batch, chosen, strict=False):
                seat.made, seat.token, seat.since = made, None, time.monotonic()
                seat.n_held += 1
            for seat in batch:
                seat.is_computing = False
                if failure is not None:
                    seat.failure, seat.token = seat.failure or failure, None
                seat.changed.notify()
            if status == NO_SLOT and self._seats:
                self._is_crowded = True
                self._drop(self._seats[-1])
            self._idle.notify_all()

    def _choose(self, number: int, seat: Seat) -> int | None:
        try:
            return seat.choose(Row(self.cells.handle, self._vocab, number))
        except BaseException as error:  # noqa: BLE001 - raised again by the one that has the seat
            seat.failure = error
            return None
