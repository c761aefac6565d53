"""Generations in threads: for asynchronous callers, and several at once."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

from mixtral_rag.engines import Cancellation, cancellation, stopped_by
from mixtral_rag.errors import GenerationError

T = TypeVar("T")


def in_order(
    work: Callable[[int], T], count: int, at_once: int, cancel: Cancellation
) -> Iterator[T]:
    """`work` for 0 to `count` - 1 in this order, up to `at_once` at the same time.

    An error, or leaving early, throws `cancel` for those that still run.
    """
    at_once = min(count, at_once)
    if at_once < 2:
        yield from map(work, range(count))
        return
    pool = ThreadPoolExecutor(at_once, thread_name_prefix="generate")
    try:
        yield from pool.map(work, range(count))
    except BaseException:
        cancel.cancel()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


class _OfBatch(Cancellation):
    """Ends the calls of a batch whose results nobody gets."""


def stoppable(work: Callable[[], T]) -> T:
    """What `work` gives, in another thread, so that Ctrl-C ends what it generates at once.

    Its own threads must have its context variables.
    """
    cancel, pool = _OfBatch(), ThreadPoolExecutor(1, thread_name_prefix="batch")
    with cancellation().calling(cancel.cancel), stopped_by(cancel):
        try:
            return pool.submit(copy_context().run, work).result()
        except BaseException:
            cancel.cancel()
            raise
        finally:
            pool.shutdown()


def check_wanted(cancel: Cancellation) -> None:
    """Raise where a batch was stopped, so that no cache takes the beginning of an answer for all.

    Raises:
        GenerationError: it was.
    """
    if isinstance(cancel, _OfBatch) and cancel.cancelled:
        raise GenerationError("the answer was stopped with its batch")


async def in_thread(make: Callable[[Cancellation], Iterator[T]]) -> AsyncIterator[T]:
    """What `make` yields, computed in a thread; leaving early or cancelling the task stops it."""
    loop, cancel = asyncio.get_running_loop(), Cancellation()
    queue: asyncio.Queue[T | BaseException | None] = asyncio.Queue()

    def put(item: T | BaseException | None) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(queue.put_nowait, item)

    def work() -> None:
        try:
            for item in make(cancel):
                put(item)
        except BaseException as error:  # noqa: BLE001 - raised again in the reader
            put(error)
        else:
            put(None)

    thread = threading.Thread(target=work, name="generate", daemon=True)
    thread.start()
    try:
        while (item := await queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        cancel.cancel()
