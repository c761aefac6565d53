"""Where a generation of llama.cpp computes: in its turn, or in a seat beside others."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mixtral_rag.engines import Cancellation
from mixtral_rag.engines.generation import Place
from mixtral_rag.engines.llama_context import LlamaContext
from mixtral_rag.engines.llama_passages import Composer
from mixtral_rag.engines.llama_sampler import Sampler
from mixtral_rag.engines.llama_seat import AHEAD, Seat
from mixtral_rag.engines.llama_together import SeatLostError
from mixtral_rag.engines.turns import Turn


class SharedPlace(Place):
    """Computes in the turn until another generation waits for it, then in a seat.

    Who is never waited for never takes a seat.

    Args:
        turn: who may use the context.
        context: the cells.
        model: the same context, or what puts passages into it.
        sampler: chooses tokens.
        look: is given logits before a choice.
        n_most: tokens of prompt and answer at most.
    """

    def __init__(
        self,
        turn: Turn,
        context: LlamaContext,
        model: LlamaContext | Composer,
        sampler: Sampler,
        look: Callable[[Any], None] | None,
        n_most: int,
    ) -> None:
        super().__init__(turn, model, sampler, look)
        self._cells, self._together, self._n_most = context, context.together, n_most
        self._seat: Seat | None = None

    def step(self, ids: Sequence[int], cancel: Cancellation) -> tuple[int, int]:
        """See `Place.step`."""
        while self._seat is None and (self._turn.is_wanted or not self._together.is_empty):
            self._take_seat(ids)
            if not self._together.is_full or not self._cells.is_at_end_of(ids):
                break
            self._together.wait_for_seat(cancel)
        if self._seat is not None:
            try:
                return self._together.next(self._seat, ids[-1], cancel), len(ids) - 1
            except SeatLostError:
                self._seat = None
                self._turn.acquire()
        if not self._cells.is_at_end_of(ids):
            self._together.wait_for_room(ids, min(self._n_most - len(ids), AHEAD), cancel)
        with self._together.alone():
            if self._cells.is_at_end_of(ids):  # there was no seat for this one
                self._together.let_step()
            return super().step(ids, cancel)

    def _take_seat(self, ids: Sequence[int]) -> None:
        if not self._cells.is_at_end_of(ids) or not self._cells.can_place:
            return
        seat = self._together.seat(
            ids,
            self._n_most,
            lambda row: self._sampler.sample(row, self._look),
            is_plain=self._cells.n_plain is None,
        )
        with self._together.alone():
            self._seat = seat  # before: a Ctrl-C may come right after it has joined
            if not self._together.join(seat):
                self._seat = None
                return
            self._cells.keep()  # what was read
        self._turn.give_up()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """See `Place.paused`."""
        if self._seat is None:
            with self._turn.paused():
                yield
        else:
            yield

    def keep(self) -> None:
        """Leave on the disk what was computed; a seat has done so at its beginning."""
        if self._seat is None:
            with self._together.alone():
                self._cells.keep()

    def close(self) -> None:
        """Give the seat back."""
        seat, self._seat = self._seat, None  # it refers to this place
        if seat is not None:
            self._together.leave(seat)
