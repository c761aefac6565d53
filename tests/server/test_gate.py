"""Turns at the model: bounded, fair, and never lost."""

import asyncio

import pytest

from mixtral_rag.errors import BusyError
from mixtral_rag.server.gate import Gate


def gate(slots=1, waiting=8, each=4, seconds=5.0):
    return Gate(slots, most_waiting=waiting, most_waiting_each=each, wait_seconds=seconds)


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


async def test_clients_take_turns_whoever_has_more_to_ask():
    one, order, go = gate(waiting=20, each=20), [], asyncio.Event()

    async def ask(client, number):
        async with one.turn(client):
            await go.wait()
            order.append(f"{client}{number}")

    many = [asyncio.create_task(ask("a", i)) for i in range(6)]
    await settle()
    few = [asyncio.create_task(ask("b", i)) for i in range(2)]
    await settle()
    go.set()
    await asyncio.gather(*many, *few)
    assert order.index("b0") <= order.index("a3")
    assert order.index("b1") <= order.index("a4")
    assert [o for o in order if o[0] == "a"] == [f"a{i}" for i in range(6)]


async def test_a_full_queue_says_when_to_come_again():
    one = gate(waiting=3, each=2)
    held = asyncio.Event()

    async def ask(client):
        async with one.turn(client):
            await held.wait()

    tasks = [asyncio.create_task(ask(c)) for c in "aaa"]
    await settle()
    with pytest.raises(BusyError) as own:
        await one._enter("a")
    assert own.value.is_own_share
    assert own.value.retry_after >= 1
    tasks.append(asyncio.create_task(ask("b")))
    await settle()
    with pytest.raises(BusyError) as full:
        await one._enter("c")
    assert not full.value.is_own_share
    held.set()
    await asyncio.gather(*tasks)
    assert (one.running, one.waiting) == (0, 0)


async def test_who_leaves_the_queue_leaves_no_gap():
    one, held = gate(), asyncio.Event()

    async def ask(client):
        async with one.turn(client):
            await held.wait()

    first = asyncio.create_task(ask("a"))
    await settle()
    waiting = [asyncio.create_task(ask(c)) for c in "bcd"]
    await settle()
    waiting[1].cancel()
    first.cancel()  # the slot is given on in the same moment as the next one leaves
    await asyncio.sleep(0)
    waiting[0].cancel()
    await settle()
    assert one.running == 1  # d's
    held.set()
    await asyncio.gather(first, *waiting, return_exceptions=True)
    assert (one.running, one.waiting) == (0, 0)


async def test_a_wait_ends():
    one = gate(seconds=0.05)
    async with one.turn("a"):
        with pytest.raises(BusyError, match="no turn"):
            async with one.turn("b"):
                pass
    async with one.turn("b"):
        assert one.running == 1


async def test_nobody_enters_a_server_that_stops():
    one = gate()
    one.is_closed = True
    with pytest.raises(BusyError, match="stopping"):
        await one._enter("a")


async def test_turns_are_never_lost_or_doubled():
    """Random arrivals, cancellations and errors: at the end all slots are free."""
    import random

    chance, one, most = random.Random(3), gate(slots=3, waiting=50, each=50), 0

    async def ask(client, how):
        nonlocal most
        async with one.turn(client):
            most = max(most, one.running)
            await asyncio.sleep(chance.random() / 500)
            if how < 0.2:
                raise ValueError

    tasks = []
    for i in range(300):
        tasks.append(asyncio.create_task(ask(f"c{i % 7}", chance.random())))
        if chance.random() < 0.3:
            chance.choice(tasks).cancel()
        if i % 10 == 0:
            await asyncio.sleep(0.003)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert most == 3
    assert (one.running, one.waiting) == (0, 0)
