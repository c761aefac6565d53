"""Signs of life of a reader at long work, such as OCR, so that its time begins anew."""

from collections.abc import Callable

_listeners: list[Callable[[], None]] = []


def alive() -> None:
    """Say that a page was finished; whoever waits for the reader goes on waiting."""
    for listener in _listeners:
        listener()


def listen(listener: Callable[[], None]) -> None:
    """Call `listener` at every sign of life."""
    _listeners.append(listener)
