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
        self._thread: threading.Thread | None = None
        self._process = 0
        self._finishing: asyncio.Task[None] | None = None

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None or self._process != os.getpid():
                loop = self._loop = asyncio.new_event_loop()
                self._process = os.getpid()
                self._thread = threading.Thread(
                    target=loop.run_forever, name=self._name, daemon=True
                )
                self._thread.start()
            return self._loop

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine, waited for; Ctrl-C ends the waiting and the coroutine."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._running())
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def finish(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine that tidies up, and wait for it unless on the loop's own thread.

        The last to hold an engine may be that thread, which then cannot wait for itself.
        """
        loop = self._running()
        if threading.current_thread() is self._thread:
            self._finishing = loop.create_task(coroutine)  # a loop holds its tasks weakly
        else:
            self.run(coroutine)

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
