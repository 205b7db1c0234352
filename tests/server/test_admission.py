"""Admission: the bound holds, the line is first come first served, giving up loses no place."""

from __future__ import annotations

import asyncio
import random

import pytest

from server.admission import Admission
from server.auth import Principal
from server.errors import NotReady, Overloaded

WHO = Principal()


async def test_no_more_than_the_bound_run_and_the_line_keeps_its_order() -> None:
    admission = Admission(running=2, waiting=100, max_wait_s=5)
    order: list[int] = []
    most = 0

    async def work(number: int) -> None:
        nonlocal most
        async with admission.enter(WHO):
            order.append(number)
            most = max(most, admission.running)
            await asyncio.sleep(0.001)

    await asyncio.gather(*(work(n) for n in range(30)))
    assert order == list(range(30))
    assert most == 2
    assert admission.running == admission.waiting == 0


async def test_a_full_line_is_429_with_retry_after() -> None:
    admission = Admission(running=1, waiting=0, max_wait_s=5)
    async with admission.enter(WHO):
        with pytest.raises(Overloaded) as refused:
            async with admission.enter(WHO):
                pass
    assert refused.value.status == 429
    assert refused.value.retry_after


async def test_too_long_a_wait_is_503_and_the_place_is_not_lost() -> None:
    admission = Admission(running=1, waiting=5, max_wait_s=0.02)
    async with admission.enter(WHO):
        with pytest.raises(NotReady):
            async with admission.enter(WHO):
                pass
    async with admission.enter(WHO):
        assert admission.running == 1


async def test_a_client_that_leaves_the_line_frees_its_place() -> None:
    admission = Admission(running=1, waiting=5, max_wait_s=5)

    async def wait() -> None:
        async with admission.enter(WHO):
            pass

    async with admission.enter(WHO):
        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert admission.waiting == 0
    await asyncio.wait_for(wait(), 1)


async def test_closed_refuses_newcomers_and_keeps_its_word_to_those_inside_and_in_line() -> None:
    admission = Admission(running=1, waiting=5, max_wait_s=5)

    async def work() -> None:
        async with admission.enter(WHO):
            await asyncio.sleep(0.01)

    inside = [asyncio.create_task(work()) for _ in range(3)]
    await asyncio.sleep(0)
    admission.closed = True
    with pytest.raises(NotReady) as refused:
        async with admission.enter(WHO):
            pass
    assert refused.value.retry_after
    await asyncio.wait_for(asyncio.gather(*inside), 1)


async def test_a_turn_that_comes_while_its_client_leaves_is_handed_on() -> None:
    """The place is given, and in the same breath the one it was given to is cancelled, or has waited too long."""
    admission = Admission(running=1, waiting=5, max_wait_s=5)

    async def wait() -> None:
        async with admission.enter(WHO):
            pass

    async with admission.enter(WHO):
        leaving, staying = asyncio.create_task(wait()), asyncio.create_task(wait())
        await asyncio.sleep(0)
    leaving.cancel()  # its turn has been set by the exit above, and it has not run since
    with pytest.raises(asyncio.CancelledError):
        await leaving
    await asyncio.wait_for(staying, 1)
    assert admission.running == admission.waiting == 0
    await asyncio.wait_for(wait(), 1)


async def test_chaos_loses_no_place() -> None:
    admission = Admission(running=3, waiting=50, max_wait_s=0.01)
    order = random.Random(7)

    async def work() -> None:
        async with admission.enter(WHO):
            await asyncio.sleep(order.random() / 100)

    tasks = [asyncio.create_task(work()) for _ in range(60)]
    for task in tasks:
        await asyncio.sleep(order.random() / 1000)
        if order.random() < 0.4:
            task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    kinds = (type(None), NotReady, Overloaded, asyncio.CancelledError)
    assert all(isinstance(result, kinds) for result in results)
    assert admission.running == admission.waiting == 0
    async with admission.enter(WHO), admission.enter(WHO), admission.enter(WHO):
        assert admission.running == 3
