"""Residency: loads once, evicts only idle adapters, serves the line in order, forgets nothing on failure."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from server.engine.host import Session
from server.engine.residency import Residency
from server.errors import NotReady, Unservable


@dataclass(frozen=True)
class Version:
    ref: str


@dataclass
class Engine:
    """Stands for a Session: keeps what an engine with `capacity` places would hold."""

    capacity: int
    load_s: float = 0.0
    bad: set[str] = field(default_factory=set)
    held: dict[str, int] = field(default_factory=dict)
    loads: list[str] = field(default_factory=list)
    ids: int = 0
    alive: bool = True

    def next_adapter_id(self) -> int:
        self.ids += 1
        return self.ids

    async def add_adapter(self, ref: str, lora_id: int, folder: Path) -> None:
        await asyncio.sleep(self.load_s)
        if ref in self.bad:
            raise Unservable(f"the engine refuses `{ref}`: bad")
        assert ref not in self.held
        self.held[ref] = lora_id
        self.loads.append(ref)
        assert len(self.held) <= self.capacity

    async def remove_adapter(self, ref: str, lora_id: int) -> None:
        assert self.held.pop(ref) == lora_id


@dataclass
class Seen:
    loads: list[str] = field(default_factory=list)
    evictions: list[str] = field(default_factory=list)
    waits: int = 0

    def loaded(self, ref: str, seconds: float) -> None:
        self.loads.append(ref)

    def evicted(self, ref: str) -> None:
        self.evictions.append(ref)

    def waited(self, seconds: float) -> None:
        self.waits += 1


def make(places: int, engine: Engine, **options: Any) -> tuple[Residency[Version], Seen]:
    seen = Seen()
    residency = Residency[Version](places, lambda _: Path("/nowhere"), seen, **options)
    residency.attach(cast(Session, engine))
    return residency, seen


async def test_many_first_requests_load_once() -> None:
    engine = Engine(4, load_s=0.01)
    residency, seen = make(4, engine)

    async def use() -> None:
        async with residency.lease(Version("a@1")):
            assert "a@1" in engine.held

    await asyncio.gather(*(use() for _ in range(20)))
    assert seen.loads == ["a@1"]
    assert residency.resident == ["a@1"]


async def test_the_least_recently_used_idle_adapter_goes() -> None:
    engine = Engine(2)
    residency, seen = make(2, engine)
    for ref in ("a@1", "b@1", "a@1", "c@1"):
        async with residency.lease(Version(ref)):
            pass
    assert seen.evictions == ["b@1"]
    assert set(engine.held) == {"a@1", "c@1"}


async def test_an_adapter_in_use_is_never_evicted() -> None:
    engine = Engine(1)
    residency, seen = make(1, engine, longest_wait=0.1, patience=0.02)
    async with residency.lease(Version("a@1")):
        with pytest.raises(NotReady) as refused:
            async with residency.lease(Version("b@1")):
                pass
        assert "a@1" in engine.held
    assert refused.value.status == 503
    assert seen.evictions == []


async def test_interleaved_requests_over_few_places_all_get_their_own() -> None:
    engine = Engine(4, load_s=0.001)
    residency, seen = make(4, engine, patience=0.01)
    order = random.Random(0)
    refs = [f"a{n % 8}@1" for n in range(200)]
    order.shuffle(refs)

    async def use(ref: str) -> None:
        async with residency.lease(Version(ref)):
            for _ in range(3):
                assert ref in engine.held
                await asyncio.sleep(0.001)

    await asyncio.wait_for(asyncio.gather(*(use(ref) for ref in refs)), 20)
    assert len(seen.loads) >= 8
    assert len(seen.evictions) == len(seen.loads) - len(engine.held)


async def test_a_busy_adapter_cannot_starve_a_waiting_one() -> None:
    engine = Engine(1)
    residency, _ = make(1, engine, patience=0.05, longest_wait=5)
    stop = asyncio.Event()

    async def hammer() -> None:
        while not stop.is_set():
            async with residency.lease(Version("hot@1")):
                await asyncio.sleep(0.01)

    crowd = [asyncio.create_task(hammer()) for _ in range(4)]
    await asyncio.sleep(0.02)

    async def cold() -> None:
        async with residency.lease(Version("cold@1")):
            assert set(engine.held) == {"cold@1"}

    await asyncio.wait_for(cold(), 2)
    stop.set()
    await asyncio.wait_for(asyncio.gather(*crowd), 2)


async def test_a_failed_load_tells_everybody_and_frees_the_place() -> None:
    engine = Engine(1, load_s=0.01, bad={"bad@1"})
    residency, _ = make(1, engine)

    async def use(ref: str) -> None:
        async with residency.lease(Version(ref)):
            pass

    results = await asyncio.gather(use("bad@1"), use("bad@1"), return_exceptions=True)
    assert all(isinstance(r, Unservable) for r in results)
    await use("good@1")
    assert engine.loads == ["good@1"]
    with pytest.raises(Unservable):  # remembered, not tried at every request
        await use("bad@1")


async def test_a_client_that_leaves_during_the_load_undoes_nothing() -> None:
    engine = Engine(2, load_s=0.03)
    residency, _ = make(2, engine)

    async def use() -> None:
        async with residency.lease(Version("a@1")):
            pass

    first, second = asyncio.create_task(use()), asyncio.create_task(use())
    await asyncio.sleep(0.01)
    first.cancel()
    await second
    assert engine.loads == ["a@1"]


async def test_clients_that_leave_the_line_do_not_block_it() -> None:
    engine = Engine(1)
    residency, _ = make(1, engine, patience=0.01)

    async def use(ref: str) -> None:
        async with residency.lease(Version(ref)):
            pass

    async with residency.lease(Version("a@1")):
        gone = asyncio.create_task(use("b@1"))
        await asyncio.sleep(0.005)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
    await asyncio.wait_for(use("c@1"), 1)


async def test_a_new_engine_starts_empty() -> None:
    engine = Engine(2)
    residency, seen = make(2, engine)
    async with residency.lease(Version("a@1")):
        pass
    fresh = Engine(2)
    residency.attach(cast(Session, fresh))
    assert residency.resident == []
    async with residency.lease(Version("a@1")):
        assert "a@1" in fresh.held
    assert seen.loads == ["a@1", "a@1"]


async def test_draining_ends_when_nobody_waits_any_more() -> None:
    """A long stream keeps its adapter busy; the one that waited for its place has left."""
    engine = Engine(1)
    residency, _ = make(1, engine, patience=0.01, longest_wait=0.05)
    async with residency.lease(Version("hot@1")):
        with pytest.raises(NotReady):  # it had hot@1 drained meanwhile
            async with residency.lease(Version("cold@1")):
                pass

        async def join() -> None:
            async with residency.lease(Version("hot@1")):
                pass

        await asyncio.wait_for(join(), 2)


async def test_a_restart_while_leases_are_held() -> None:
    """What was held in the dead engine is given back without touching the new one's places."""
    engine, fresh = Engine(1), Engine(1)
    residency, seen = make(1, engine)
    async with residency.lease(Version("a@1")):
        residency.attach(cast("Session", fresh))
        async with residency.lease(Version("a@1")), residency.lease(Version("a@1")):
            assert list(fresh.held) == ["a@1"]
        async with residency.lease(Version("b@1")):
            assert list(fresh.held) == ["b@1"]
    async with residency.lease(Version("b@1")):
        assert list(fresh.held) == ["b@1"]
    assert list(engine.held) == ["a@1"]
    assert seen.loads == ["a@1", "a@1", "b@1"]


async def test_a_restart_during_a_load_tells_the_waiting_to_come_back() -> None:
    engine, fresh = Engine(1, load_s=0.02), Engine(1)
    residency, _ = make(1, engine)

    async def use() -> None:
        async with residency.lease(Version("a@1")):
            pass

    users = [asyncio.create_task(use()) for _ in range(3)]
    await asyncio.sleep(0.005)
    residency.attach(cast("Session", fresh))
    results = await asyncio.gather(*users, return_exceptions=True)
    assert all(isinstance(result, NotReady) for result in results)
    await use()
    assert list(fresh.held) == ["a@1"]


async def test_files_that_cannot_be_had_free_the_place() -> None:
    engine = Engine(1)

    def missing(version: Version) -> Path:
        raise OSError("gone")

    residency = Residency[Version](1, missing, Seen())
    residency.attach(cast("Session", engine))
    for _ in range(2):
        with pytest.raises(OSError, match="gone"):
            async with residency.lease(Version("a@1")):
                pass
    assert residency.resident == []
    residency.files = lambda _: Path("/nowhere")
    async with residency.lease(Version("a@1")):
        assert residency.resident == ["a@1"]


async def test_before_the_first_engine_it_is_503() -> None:
    residency = Residency[Version](1, lambda _: Path("/nowhere"), Seen())
    with pytest.raises(NotReady):
        async with residency.lease(Version("a@1")):
            pass
    residency.attach(cast("Session", Engine(1)))
    async with residency.lease(Version("a@1")):
        pass


async def test_chaos_keeps_engine_and_books_equal() -> None:
    """Cancelled, refused, late and restarted requests in random order; afterwards everything still fits."""
    order = random.Random(3)
    engine = Engine(3, load_s=0.001, bad={"a7@1"})
    residency, _ = make(3, engine, patience=0.005, longest_wait=0.05)

    async def use(ref: str) -> None:
        async with residency.lease(Version(ref)):
            assert ref in engine.held
            await asyncio.sleep(order.random() / 100)
            assert ref in engine.held

    tasks = []
    for _ in range(300):
        tasks.append(asyncio.create_task(use(f"a{order.randrange(10)}@1")))
        if order.random() < 0.3:
            order.choice(tasks).cancel()
        await asyncio.sleep(order.random() / 2000)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    kinds = (type(None), NotReady, Unservable, asyncio.CancelledError)
    assert all(isinstance(result, kinds) for result in results), results
    assert sum(result is None for result in results) > 50
    await asyncio.sleep(0.05)
    assert sorted(residency.resident) == sorted(engine.held)
    assert not residency._wanting
    assert not any(place.users for place in residency._held.values())
    for ref in ("x@1", "y@1", "z@1"):
        await asyncio.wait_for(use(ref), 1)
    assert sorted(engine.held) == ["x@1", "y@1", "z@1"]
