"""Who may use the model: so many at once, the others in a bounded queue with fair turns."""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mixtral_rag.errors import BusyError

_LONGEST_RETRY = 120  # seconds


class Gate:
    """Lets `slots` requests at a time through; the clients that wait take turns.

    A client with many requests does not hold up one with few: whenever a slot is free, the next
    client in the round has its oldest request served.

    Args:
        slots: requests served at the same time.
        most_waiting: requests in the queue at most.
        most_waiting_each: of one client.
        wait_seconds: longest wait.
    """

    def __init__(
        self, slots: int, *, most_waiting: int, most_waiting_each: int, wait_seconds: float
    ) -> None:
        self._free, self.slots = slots, slots
        self._most, self._most_each = most_waiting, most_waiting_each
        self._wait_seconds = wait_seconds
        self._queues: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._mean_seconds = 1.0  # that a slot is held
        self.is_closed = False

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return sum(map(len, self._queues.values()))

    @property
    def running(self) -> int:
        """Requests that are being served."""
        return self.slots - self._free

    @property
    def retry_after(self) -> int:
        """Seconds until the queue should have moved on."""
        rounds = (self.waiting + 1) / self.slots
        return max(1, min(_LONGEST_RETRY, round(rounds * self._mean_seconds)))

    @asynccontextmanager
    async def turn(self, client: str) -> AsyncIterator[None]:
        """Wait for a slot and hold it.

        Raises:
            BusyError: the queue is full, the wait too long, or the server is stopping.
        """
        await self._enter(client)
        started = time.monotonic()
        try:
            yield
        finally:
            self._mean_seconds += 0.2 * (time.monotonic() - started - self._mean_seconds)
            self._leave()

    async def _enter(self, client: str) -> None:
        if self.is_closed:
            raise BusyError("the server is stopping", retry_after=10)
        if self._free and not self._queues:
            self._free -= 1
            return
        queue = self._queues.get(client, ())
        if len(queue) >= self._most_each:
            raise BusyError(
                f"{len(queue)} requests of yours are waiting already",
                retry_after=self.retry_after,
                is_own_share=True,
            )
        if self.waiting >= self._most:
            raise BusyError(
                f"the server is busy: {self.waiting} requests are waiting",
                retry_after=self.retry_after,
            )
        await self._wait(client)

    async def _wait(self, client: str) -> None:
        ticket = asyncio.get_running_loop().create_future()
        self._queues.setdefault(client, deque()).append(ticket)
        try:
            async with asyncio.timeout(self._wait_seconds):
                await ticket
        except BaseException as error:
            self._withdraw(client, ticket)
            if isinstance(error, TimeoutError):
                raise BusyError(
                    f"no turn within {self._wait_seconds:.0f} s", retry_after=self.retry_after
                ) from None
            raise

    def _withdraw(self, client: str, ticket: "asyncio.Future[None]") -> None:
        if ticket.done() and not ticket.cancelled():
            self._leave()  # it had been given the slot in this moment
        elif ticket in self._queues.get(client, ()):
            self._queues[client].remove(ticket)
            if not self._queues[client]:
                del self._queues[client]

    def _leave(self) -> None:
        while self._queues:
            client, queue = self._queues.popitem(last=False)
            ticket = queue.popleft()
            if queue:
                self._queues[client] = queue  # behind the others
            if not ticket.done():
                ticket.set_result(None)
                return
        self._free += 1
