"""Who may use the one context of an engine."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mixtral_rag.engines import Cancellation, Interrupted

_GRACE = 0.05  # seconds a paused holder keeps its turn at least while another waits


class Turns:
    """Gives one generation the context until it ends.

    A generator can be left half read, forever or by a reader that itself starts the next
    generation. So a holder that stays paused at a `yield` for longer than its grace loses its turn
    to one that waits, and takes a new turn when it is read again. The grace grows with what taking
    a turn costs, so that two slow readers do not spend their time on computing prompts again.
    Holders that are read steadily are never interrupted.

    Args:
        leaving: called by the thread of a generation that has ended, before the next one begins.
    """

    def __init__(self, leaving: Callable[[], None] = lambda: None) -> None:
        self._leaving = leaving
        self._condition = threading.Condition()
        self._holder: Turn | None = None
        self._n_waiting = 0

    @contextmanager
    def turn(self, cancel: Cancellation) -> "Iterator[Turn]":
        """Wait for the context and hold it; release it at the end whatever happens.

        Raises:
            Interrupted: `cancel` was thrown while waiting.
        """
        turn = Turn(self, cancel)
        self.acquire(turn)
        try:
            yield turn
        finally:
            self._leaving()
            self.release(turn)

    def acquire(self, turn: "Turn") -> None:
        """Wait until `turn` holds the context."""
        with turn.cancel.calling(self._wake), self._condition:
            self._n_waiting += 1
            try:
                self._wait(turn)
            finally:
                self._n_waiting -= 1
            self._holder = turn
            turn.paused_at = None

    def _wait(self, turn: "Turn") -> None:
        while self._holder is not None and self._holder is not turn:
            if turn.cancel.cancelled:
                raise Interrupted
            left = self._holder.grace_left()
            if left is not None and left <= 0:
                break
            self._condition.wait(left)

    @property
    def is_wanted(self) -> bool:
        """Whether another generation waits for the context."""
        return self._n_waiting > 0

    def release(self, turn: "Turn") -> None:
        """Let the next one in, if `turn` still holds the context."""
        with self._condition:
            if self._holder is turn:
                self._holder = None
                self._condition.notify_all()

    def pause(self, turn: "Turn") -> None:
        """Note that the holder waits for its reader."""
        with self._condition:
            turn.paused_at = time.monotonic()
            self._condition.notify_all()

    def _wake(self) -> None:
        with self._condition:
            self._condition.notify_all()


class Turn:
    """One generation's claim on the context; `cost` is the seconds of its last prefill."""

    def __init__(self, turns: Turns, cancel: Cancellation) -> None:
        self._turns, self.cancel = turns, cancel
        self.paused_at: float | None = None
        self.cost = 0.0

    @property
    def is_wanted(self) -> bool:
        """Whether another generation waits for the context."""
        return self._turns.is_wanted

    def give_up(self) -> None:
        """Let the next one in; `acquire` takes the turn again."""
        self._turns.release(self)

    def acquire(self) -> None:
        """Wait for the turn and take it, unless it still is this one's."""
        self._turns.acquire(self)

    def grace_left(self) -> float | None:
        """Seconds until another may take the turn; None while it is being used."""
        if self.paused_at is None:
            return None
        return self.paused_at + _GRACE + self.cost - time.monotonic()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Around a `yield`: the reader may take its time, others need not wait for it."""
        self._turns.pause(self)
        yield
        self._turns.acquire(self)
