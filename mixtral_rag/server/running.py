"""Work of the model for a request: in its turn, in a thread, and stopped when the client leaves."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import Request
from sse_starlette import EventSourceResponse

from mixtral_rag.engines import Cancellation, stopped_by
from mixtral_rag.errors import MixtralRagError
from mixtral_rag.server.failures import ClientGoneError, RefusedError, body, told, unexpected
from mixtral_rag.server.gate import Gate
from mixtral_rag.threads import in_thread

T = TypeVar("T")
_PEEK = 1.0  # seconds that a stream waits for its first piece, so that errors have their status
_SEND_SECONDS = 60.0  # for a reader to take a piece


async def in_turn(
    gate: Gate, client: str, seconds: float, make: Callable[[Cancellation], Iterator[T]]
) -> AsyncIterator[T]:
    """What `make` yields in a thread, once it is this client's turn.

    The turn ends with the thread, however slowly the reader takes what it made.

    Raises:
        BusyError: the queue is full.
        RefusedError: it takes longer than `seconds`.
    """
    made: asyncio.Queue[T | BaseException | None] = asyncio.Queue()
    # A task of its own: a time limit is bound to one, and the reader may change between them.
    task = asyncio.create_task(_produce(gate, client, seconds, make, made))
    try:
        while (item := await made.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        task.cancel()


async def _produce(
    gate: Gate, client: str, seconds: float, make: Callable[[Cancellation], Iterator[T]],
    made: "asyncio.Queue[T | BaseException | None]",
) -> None:  # fmt: skip
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def work(cancel: Cancellation) -> Iterator[T]:
        try:
            with stopped_by(cancel):
                yield from make(cancel)
        finally:
            if not loop.is_closed():
                loop.call_soon_threadsafe(ended.set)

    try:
        async with gate.turn(client):
            try:
                async with asyncio.timeout(seconds) as limit, aclosing(in_thread(work)) as items:  # type: ignore[type-var]
                    async for item in items:
                        made.put_nowait(item)
            except TimeoutError as error:
                text = f"the answer took longer than {seconds:.0f} s"
                late = RefusedError(text, status=504, code="timeout")
                made.put_nowait(late if limit.expired() else error)
            finally:
                await ended.wait()  # what is stopped may still hold the model for a moment
        made.put_nowait(None)
    except Exception as error:  # noqa: BLE001 - raised again in the reader
        made.put_nowait(error)


async def while_here(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is stopped when the client leaves.

    Raises:
        ClientGoneError: it left.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()


async def one_in_turn(
    request: Request, gate: Gate, client: str, seconds: float,
    make: Callable[[Cancellation], Iterator[T]],
) -> T:  # fmt: skip
    """The one thing that `make` yields, as `in_turn`; stopped when the client leaves.

    Raises:
        ClientGoneError: it left.
        BusyError: the queue is full.
        RefusedError: it takes longer than `seconds`.
    """

    async def run() -> T:
        return await anext(in_turn(gate, client, seconds, make))

    return await while_here(request, run())


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def events(items: AsyncIterator[T], write: Callable[[T], str | None]) -> EventSourceResponse:
    """Server-sent events of what `items` yields.

    An error within the first second is raised, so that it has a status; a later one is an event.

    Args:
        items: what is made.
        write: each as the data of an event; None for nothing.
    """
    first = asyncio.ensure_future(anext(items, None))
    done, _ = await asyncio.wait({first}, timeout=_PEEK)
    if done and first.exception() is not None:
        await first

    async def run() -> AsyncIterator[Any]:
        try:
            item = await first
            while item is not None:
                if (data := write(item)) is not None:
                    yield {"data": data}
                item = await anext(items, None)
        except MixtralRagError as error:
            yield {"data": _json(told(error)[1])}
        except Exception as error:  # noqa: BLE001 - logged by place
            unexpected(error)
            yield {"data": _json(body("the server failed; its log says where", 500))}
        finally:
            first.cancel()
            await items.aclose()  # type: ignore[attr-defined]

    return EventSourceResponse(run(), sep="\n", send_timeout=_SEND_SECONDS)


def _json(content: Any) -> str:
    import json

    return json.dumps(content, ensure_ascii=False)
