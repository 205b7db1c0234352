"""The engine's life, with a factory that makes fake engines: start, death, restart with backoff, stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from argparse import Namespace
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from server.engine.host import EngineHost, Session, Stopper, set_environment
from server.errors import NotReady, StartError
from tests.server.fakes import until


@dataclass
class Factory:
    """Makes sessions; `plan` says how each start goes: an exception, or None for an engine that lives."""

    plan: list[Exception | None] = field(default_factory=list)
    start_s: float = 0.0
    shutdown_error: Exception | None = None
    generations: list[int] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    engines: list[Any] = field(default_factory=list)
    stoppers: list[Stopper] = field(default_factory=list)

    @contextlib.asynccontextmanager
    async def __call__(self, args: Namespace, stopper: Stopper, generation: int) -> AsyncIterator[Session]:
        assert args.model == "tiny"
        self.generations.append(generation)
        self.stoppers.append(stopper)
        await asyncio.sleep(self.start_s)
        outcome = self.plan.pop(0) if self.plan else None
        if outcome is not None:
            raise outcome
        engine = SimpleNamespace(
            errored=False, generate=None, model_config=SimpleNamespace(max_model_len=128)
        )
        self.engines.append(engine)
        self.log.append("up")
        try:
            yield Session(engine, None, None, generation)  # type: ignore[arg-type]
        finally:
            self.log.append("down")
            if self.shutdown_error:
                raise self.shutdown_error


@dataclass
class Life:
    """A host that runs, and what it told."""

    factory: Factory
    started: asyncio.Queue[Session] = field(default_factory=asyncio.Queue)
    on_start_error: Exception | None = None

    def __post_init__(self) -> None:
        async def on_start(session: Session) -> None:
            assert not self.host.ready, "no request may come in before the engine is attached"
            if self.on_start_error:
                raise self.on_start_error
            self.started.put_nowait(session)

        self.host = EngineHost(
            lambda: Namespace(model="tiny"), on_start, open=self.factory, backoff=(0.01, 0.02, 0.05)
        )
        self.task = asyncio.create_task(self.host.run())

    async def up(self) -> Session:
        session = await asyncio.wait_for(self.started.get(), 2)
        assert self.host.ready
        return session

    async def end(self) -> None:
        self.host.stop()
        await asyncio.wait_for(self.task, 2)


async def test_it_starts_and_stops() -> None:
    life = Life(Factory(start_s=0.02))
    await asyncio.sleep(0)
    assert life.host.state == "starting"
    with pytest.raises(NotReady) as refused:
        _ = life.host.session
    assert refused.value.retry_after == 10
    session = await life.up()
    assert life.host.session is session
    assert (life.host.state, life.host.restarts, life.host.max_model_len) == ("ready", 0, 128)
    assert life.host.ready_s is not None
    assert life.host.ready_s >= 0.02
    await life.end()
    assert life.factory.log == ["up", "down"]
    assert life.host.state == "stopped"
    assert not life.host.ready


async def test_death_by_vllms_handlers_restarts_it(caplog: pytest.LogCaptureFixture) -> None:
    life = Life(Factory())
    first = await life.up()
    with caplog.at_level(logging.ERROR, "onebase.engine"):
        life.factory.stoppers[0].should_exit = True
        second = await life.up()
    assert second is not first
    assert life.host.session is second
    assert (life.host.restarts, life.host.state, life.host.problem) == (1, "ready", None)
    assert life.factory.generations == [0, 1]
    assert life.factory.log == ["up", "down", "up"]
    assert "restart 1" in caplog.text
    await life.end()


async def test_an_engine_that_dies_silently_is_noticed() -> None:
    life = Life(Factory())
    await life.up()
    life.factory.engines[0].errored = True
    assert not life.host.ready
    with pytest.raises(NotReady):
        _ = life.host.session
    await life.up()
    assert life.host.restarts == 1
    await life.end()


async def test_failing_restarts_go_on_with_backoff() -> None:
    life = Life(Factory([None, RuntimeError("no\nmemory"), RuntimeError("no memory"), None]))
    await life.up()
    life.factory.stoppers[0].should_exit = True
    seen: set[tuple[str, str | None]] = set()

    def back() -> bool:
        seen.add((life.host.state, life.host.problem))
        return life.host.restarts == 3 and life.host.ready

    await until(back)
    assert ("restarting", "the engine died") in seen
    assert ("restarting", "no memory") in seen
    assert life.factory.generations == [0, 1, 2, 3]
    await life.end()


async def test_the_first_start_that_fails_ends_it_in_one_line() -> None:
    life = Life(Factory([RuntimeError("No available memory\nfor the cache blocks")]))
    with pytest.raises(StartError) as refused:
        await life.task
    assert refused.value.message == "the engine did not start: No available memory for the cache blocks"
    assert life.host.state == "failed"
    assert life.host.problem == "No available memory for the cache blocks"


async def test_a_first_engine_that_cannot_be_attached_is_shut_down() -> None:
    life = Life(Factory(), on_start_error=ValueError("bad"))
    with pytest.raises(StartError, match="bad"):
        await life.task
    assert life.factory.log == ["up", "down"]
    assert not life.host.ready


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (StartError("the engine refuses its flags: --x"), "the engine refuses its flags: --x"),
        (ImportError("no vllm"), "the engine did not start: no vllm"),
    ],
)
async def test_flags_that_are_refused_end_it(error: Exception, says: str) -> None:
    async def on_start(_: Session) -> None: ...

    def prepare() -> Namespace:
        raise error

    host = EngineHost(prepare, on_start, open=Factory())
    with pytest.raises(StartError) as refused:
        await host.run()
    assert refused.value.message == says
    assert host.state == "failed"


async def test_stop_during_the_start_waits_for_the_engine_and_takes_it_down() -> None:
    life = Life(Factory(start_s=0.05))
    await asyncio.sleep(0.01)
    await life.end()
    assert life.factory.log == ["up", "down"]


async def test_stop_during_the_backoff_does_not_start_another() -> None:
    life = Life(Factory())
    life.host.backoff = (30.0,)
    await life.up()
    life.factory.stoppers[0].should_exit = True
    await until(lambda: life.host.restarts == 1)
    await life.end()
    assert life.factory.generations == [0]
    assert life.host.state == "stopped"


async def test_a_dead_engine_that_does_not_shut_down_cleanly_is_still_replaced() -> None:
    life = Life(Factory())
    await life.up()
    life.factory.shutdown_error = OSError("no such process")
    life.factory.stoppers[0].should_exit = True
    await life.up()
    life.factory.shutdown_error = None
    await life.end()
    assert life.factory.log == ["up", "down", "up", "down"]


async def test_a_cancelled_host_takes_its_engine_down() -> None:
    life = Life(Factory())
    await life.up()
    life.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await life.task
    assert life.factory.log == ["up", "down"]
    assert not life.host.ready


@dataclass
class Engine:
    errored: bool = False
    remove_error: Exception | None = None
    removed: list[int] = field(default_factory=list)

    async def remove_lora(self, lora_id: int) -> None:
        self.removed.append(lora_id)
        if self.remove_error:
            raise self.remove_error


@pytest.mark.parametrize(("dead", "kind"), [(True, NotReady), (False, RuntimeError)])
async def test_removing_from_a_dead_engine_is_503(dead: bool, kind: type[Exception]) -> None:
    engine = Engine(errored=dead, remove_error=RuntimeError("EngineCore died"))
    models = SimpleNamespace(lora_requests={"a@1": object()})
    session = Session(engine, None, models, 0)  # type: ignore[arg-type]
    with pytest.raises(kind):
        await session.remove_adapter("a@1", 4)
    assert models.lora_requests == {}
    assert engine.removed == [4]


def test_what_the_user_exported_wins_and_open_load_routes_are_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"A": "theirs", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"})
    set_environment({"A": "ours", "B": "ours"})
    assert os.environ == {"A": "theirs", "B": "ours"}
