"""The loop on a thread of its own, where it is used by its own thread."""

import asyncio
import threading
import weakref

from mixtral_rag.engines import Cancellation
from mixtral_rag.engines.background import Loop


class Held:
    """Something that is tidied up on the loop when nobody holds it."""


def test_what_the_loop_itself_lets_go_last_is_tidied_up_and_the_loop_goes_on():
    loop, ended = Loop("test"), threading.Event()

    async def tidy():
        await asyncio.sleep(0)
        ended.set()

    def let_go():
        loop.finish(tidy())

    held = Held()
    weakref.finalize(held, let_go)
    box = [held]
    del held

    async def last():
        box.clear()

    loop.run(last())
    assert ended.wait(10)
    assert list(loop.iterate(numbers, Cancellation())) == [0, 1, 2]


def test_another_thread_waits_for_the_tidying():
    loop, done = Loop("test"), []

    async def tidy():
        await asyncio.sleep(0.05)
        done.append(1)

    loop.finish(tidy())
    assert done == [1]


async def numbers():
    for i in range(3):
        yield i
