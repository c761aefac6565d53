"""An event loop on a thread of its own, for engines whose libraries are asynchronous."""

import asyncio
import os
import queue
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from mixtral_rag.engines import Cancellation, Interrupted

T = TypeVar("T")
_DONE = object()


class Loop:
    """Runs coroutines for threads that have no loop; started on first use, and again in a fork."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process = 0

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None or self._process != os.getpid():
                loop = self._loop = asyncio.new_event_loop()
                self._process = os.getpid()
                threading.Thread(target=loop.run_forever, name=self._name, daemon=True).start()
            return self._loop

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine, waited for; Ctrl-C ends the waiting and the coroutine."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._running())
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, make: Callable[[], AsyncIterator[T]], cancel: Cancellation) -> Iterator[T]:
        """What the asynchronous iterator of `make` yields.

        Whatever ends the iteration early, cancelling, Ctrl-C or the reader leaving, also cancels
        what the iterator waits for and closes it.

        Raises:
            Interrupted: `cancel` was thrown.
        """
        items: queue.SimpleQueue[Any] = queue.SimpleQueue()

        async def work() -> None:
            try:
                async with aclosing(make()) as source:  # type: ignore[type-var]
                    async for item in source:
                        items.put(item)
            except asyncio.CancelledError:
                raise
            except BaseException as error:  # noqa: BLE001 - raised again in the reader
                items.put(error)
            else:
                items.put(_DONE)

        task = asyncio.run_coroutine_threadsafe(work(), self._running())

        def stop() -> None:
            task.cancel()
            items.put(Interrupted())

        try:
            with cancel.calling(stop):
                while (item := items.get()) is not _DONE:
                    if isinstance(item, BaseException):
                        raise item
                    yield item
        finally:
            with suppress(RuntimeError):  # the interpreter is shutting down
                task.cancel()
