"""Waiting for a server from any thread: the event loop of all remote engines."""

import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from typing import TypeVar

from mixtral_rag.engines import Cancellation, Interrupted
from mixtral_rag.engines.background import Loop
from mixtral_rag.engines.remote_errors import Failure

T = TypeVar("T")
LOOP = Loop("remote")


def result(ask: Callable[[], Awaitable[T]], cancel: Cancellation) -> T:
    """What a coroutine gives.

    Raises:
        Interrupted: `cancel` was thrown; the coroutine is cancelled too.
        MixtralRagError: that of the `Failure` which it raised.
    """

    async def once() -> AsyncIterator[T]:
        yield await ask()

    try:
        with closing(LOOP.iterate(once, cancel)) as results:  # type: ignore[type-var]
            return next(iter(results))
    except Failure as failure:
        raise failure.error from failure.__cause__


@contextmanager
def held(lock: threading.Lock, cancel: Cancellation) -> Iterator[None]:
    """Hold a lock within the block.

    Raises:
        Interrupted: `cancel` was thrown while waiting for it.
    """
    while not lock.acquire(timeout=0.1):
        if cancel.cancelled:
            raise Interrupted
    try:
        yield
    finally:
        lock.release()
