"""Answers computed together: the next token of each in one batch of llama.cpp.

One generation at a time has the turn: it reads its prompt in the first sequence of the cache. Where
another one waits, it gives the turn up and takes a seat, a sequence of its own with what was read
(`llama_cells`). A thread then computes the last tokens of all seats in one batch, and again for
each next token: so do servers for GPUs (Orca, OSDI 2022), and every weight is fetched once for all.
Prompts are read between the steps, batch by batch.

Who holds the lock here never waits for llama.cpp: a client that leaves takes it on the event loop.
"""

import threading
from collections.abc import Callable, Sequence

from mixtral_rag.engines import Cancellation, Interrupted
from mixtral_rag.engines.llama_cells import SharedCells
from mixtral_rag.engines.llama_seat import Row, Seat, closest, n_cells
from mixtral_rag.engines.llama_steps import GRACE, Steps


class SeatLostError(Exception):
    """The cells of a seat were needed; its tokens have to be computed again."""


class Together(Steps):
    """The seats as who has the turn, and who has a seat, uses them."""

    @property
    def is_beside(self) -> bool:
        """Whether the turn's context has cells of a seat."""
        return not (self.cells.are_own or self.is_empty)

    @property
    def room(self) -> int:
        """Cells of the turn's context that no seat holds."""
        if self.cells.are_own:
            return self._n_ctx
        return self._n_ctx - self._n_cells(
            [(s.ids, s.n_held) for s in [*self._seats, *self._stale]]
        )

    def _n_cells(self, prompts: Sequence[tuple[Sequence[int], int]]) -> int:
        # Equal beginnings mostly share cells. Where they do not, as one of them was read from a
        # copy, the window turns out to be too small.
        return sum(n for _, n in prompts) if self._is_crowded else n_cells(prompts)

    # --- for who has the turn --------------------------------------------------------------------

    def wait_for_room(self, ids: Sequence[int], n: int, cancel: Cancellation) -> None:
        """Wait until a prompt and `n` tokens after it fit beside the cells of seats.

        Raises:
            Interrupted: `cancel` was thrown meanwhile.
        """
        self._wait(lambda: not self.is_beside or self._has_room(ids, len(ids) + n), cancel)

    def wait_for_seat(self, cancel: Cancellation) -> None:
        """Wait while it takes cells of other seats to join.

        Raises:
            Interrupted: `cancel` was thrown meanwhile.
        """
        try:
            self._wait(lambda: not self.is_full, cancel)
        finally:
            self.is_full = False  # another one may need fewer

    def _wait(self, until: Callable[[], bool], cancel: Cancellation) -> None:
        with cancel.calling(self._wake):
            while self._seats and not until():
                with self._lock:
                    if cancel.cancelled:
                        raise Interrupted
                    self._sweep()
                    if not self._drop_slow():
                        self._idle.wait(GRACE)

    def _has_room(self, ids: Sequence[int], n: int) -> bool:
        taken = [(seat.ids, seat.n_wanted) for seat in list(self._seats)]
        return self._n_cells([*taken, (ids, n)]) <= self.cells.n_cells

    def drop_one(self) -> bool:
        """Take the seat that was taken last, for its cells; False where the turn gets none so."""
        if self.cells.are_own:
            return False
        with self._lock:
            self._sweep()
            if self._seats:
                self._is_crowded = True
                self._drop(self._seats[-1])
        is_any = bool(self._stale)
        self._clean()
        return is_any

    def seat(
        self, ids: Sequence[int], n_most: int, choose: Callable[[Row], int], *, is_plain: bool
    ) -> Seat:
        """A seat to `join` with; see `Seat`."""
        return Seat(self._lock, ids, n_most, choose, is_plain=is_plain)

    def join(self, seat: Seat) -> bool:
        """Within `alone`: let a seat go on from the turn's sequence; whether there was room.

        The sequence holds all of its tokens but the last.
        """
        if not self._is_decided:
            self.cells = self._own_cells(seat.n_held) or self.cells
            self._is_decided = True
        with self._lock:
            self._sweep()
            if self._free() is None and not self._stale:
                self._drop_slow()
        self._clean()
        sequence = self._free()
        if sequence is None or self.is_full:
            return False
        seat.sequence = sequence
        if not self._take_in(seat):
            with self._lock:
                self.is_full = bool(self._seats)
            return False
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="together", daemon=True)
                thread.start()
                self._thread = thread
            self._seats.append(seat)
        return True

    def _free(self) -> int | None:
        taken = {seat.sequence for seat in [*self._seats, *self._stale]}
        return next((n for n in self._sequences if n not in taken), None)

    def _take_in(self, seat: Seat) -> bool:
        if self.cells.are_own and self._seats and not self._has_room(seat.ids, seat.n_wanted):
            return False
        if self.cells.take_in(seat.sequence, *closest(seat, list(self._seats))):
            return True
        if self._seats:
            self._is_crowded = True
            return False
        self.cells.free()
        self.cells = SharedCells(self._handle, self._n_ctx)
        return self.cells.take_in(seat.sequence, 0, 0)

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
        """Give the seat back.

        It waits for no lock: the garbage collector may close a generation within one.
        """
        self._left.append(seat)
        if self._lock.acquire(blocking=False):
            try:
                self._work.notify()
            finally:
                self._lock.release()
