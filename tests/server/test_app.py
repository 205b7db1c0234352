"""Putting the server together: the socket, the registry's demand, and a real HTTP server's end."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import time
from argparse import Namespace
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from prometheus_client import CollectorRegistry
from rich.console import Console

import server.app
from adapters.base import BaseModel
from adapters.registry import Registry
from server.admission import Admission
from server.app import App, _accept, _demand, _listen, _named, _run, _Server, _show, _url
from server.engine import plan
from server.engine.host import EngineHost, Session
from server.errors import StartError
from server.settings import Settings
from tests.server.conftest import Build, Publish, Stack
from tests.server.fakes import FakeSession, FakeVllm, until
from tests.server.test_host import Factory

STREAM = {"messages": [], "stream": True}


def test_a_taken_port_is_refused_naming_the_next() -> None:
    with closing(_listen(Settings(port=0))) as taken:
        _accept(taken, Settings(port=0))
        port = taken.getsockname()[1]
        with pytest.raises(StartError) as refused:
            _listen(Settings(port=port))
    assert f"port {port} on 127.0.0.1 is taken" in refused.value.message
    assert f"--port {port + 1 if port < 65535 else 0}" in refused.value.message
    assert refused.value.param == "port"


def test_an_address_that_is_not_ours_is_refused() -> None:
    with pytest.raises(StartError, match=r"cannot listen on 192\.0\.2\.1:0"):
        _listen(Settings(host="192.0.2.1", port=0))


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_urls() -> None:
    with closing(_listen(Settings(port=0))) as listener:
        assert _url(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"
        assert not listener.get_inheritable()
    try:
        listener = _listen(Settings(host="::1", port=0))
    except StartError:
        pytest.skip("no IPv6 address here")
    with closing(listener):
        assert _url(listener).startswith("http://[::1]:")


def test_demand_is_what_fits(
    registry: Registry, tiny: BaseModel, foreign: BaseModel, publish: Publish
) -> None:
    assert _demand(registry, tiny, Settings()) == plan.Demand(0, 0)
    publish("sql")
    publish("sql")
    publish("email")
    publish("theirs", base=foreign)
    assert _demand(registry, tiny, Settings()) == plan.Demand(2, 4)


def test_a_store_in_which_nothing_fits_is_refused(
    registry: Registry, tiny: BaseModel, foreign: BaseModel, publish: Publish, tmp_path: Path
) -> None:
    publish("one", base=foreign)
    publish("two", base=foreign)
    with pytest.raises(StartError) as refused:
        _demand(registry, tiny, Settings(store=tmp_path / "registry"))
    for part in ("none of the 2 adapters", "registry", "`tiny-base`", foreign.name, "--allow-foreign-store"):
        assert part in refused.value.message
    assert _demand(registry, tiny, Settings(allow_foreign_store=True)) == plan.Demand(0, 0)


def test_a_damaged_name_does_not_keep_the_server_down(
    registry: Registry, tiny: BaseModel, publish: Publish, tmp_path: Path
) -> None:
    publish("good")
    publish("bad")
    (tmp_path / "registry" / "names" / "bad" / "version~000001.json").chmod(0o600)
    (tmp_path / "registry" / "names" / "bad" / "version~000001.json").write_text("{")
    fresh = Registry(registry.store, cache=tmp_path / "other")
    assert _demand(fresh, tiny, Settings()).adapters == 1


def test_further_names_of_the_base(tiny: BaseModel) -> None:
    named = _named(tiny, Settings(base_aliases=("mine", "tiny-base", "org/Tiny-Base")))
    assert named.names == ("tiny-base", "org/Tiny-Base", "mine")


def test_the_choices_are_shown_with_their_reasons(tiny: BaseModel) -> None:
    console = Console(file=io.StringIO(), width=100)
    chosen = plan.Plan({"dtype": plan.Choice("float32", "no bfloat16 here")}, (), {})
    _show(chosen, tiny, plan.Demand(3, 8), console)
    assert isinstance(console.file, io.StringIO)
    assert "tiny-base: 3 adapters" in console.file.getvalue()
    assert "no bfloat16 here" in console.file.getvalue()


async def test_attach_meters_and_forgets(build: Build, publish: Publish, tiny: BaseModel) -> None:
    publish("sql")
    stack = build()
    await stack.chat("sql")
    assert stack.app.residency.resident == ["sql@1"]

    async def generate(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        yield SimpleNamespace(
            outputs=[SimpleNamespace(token_ids=[1, 2], index=0, finish_reason="stop")],
            prompt_token_ids=[1],
            finished=True,
        )

    session: Any = SimpleNamespace(engine=SimpleNamespace(generate=generate))
    await stack.app.attach(session, tiny)
    assert stack.app.residency.resident == []
    kind = SimpleNamespace(output_kind=SimpleNamespace(name="DELTA"))
    assert [o async for o in session.engine.generate("p", kind, "id")]
    labels = {"adapter": "tiny-base", "kind": "generation"}
    assert stack.collector.get_sample_value("onebase_tokens_total", labels) == 2


class Http:
    """A real uvicorn over the application, on a free port."""

    def __init__(self, stack: Stack, drain_s: float) -> None:
        self.listener = _listen(Settings(port=0))
        _accept(self.listener, Settings(port=0))
        config = uvicorn.Config(
            stack.app.asgi,
            lifespan="off",
            log_level="warning",
            loop="none",
            access_log=False,
            timeout_graceful_shutdown=drain_s,  # type: ignore[arg-type] # whole seconds would slow the tests
        )
        up = asyncio.Event()
        up.set()
        self.server = _Server(config, stack.app.admission, up)
        self.task = asyncio.create_task(self.server.serve(sockets=[self.listener]))

    async def post(
        self, path: str, body: dict[str, Any]
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(*self.listener.getsockname()[:2])
        raw = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        writer.write(f"{head}content-length: {len(raw)}\r\n\r\n".encode() + raw)
        return reader, writer


async def test_shutdown_lets_a_running_stream_finish(build: Build) -> None:
    stack = build()
    http = Http(stack, drain_s=5)
    reader, writer = await http.post("/v1/chat/completions", STREAM)
    await asyncio.wait_for(stack.vllm.first_byte.wait(), 2)
    http.server.stop()
    await asyncio.sleep(0.02)
    assert stack.app.admission.closed
    stack.vllm.go.set()
    body = await asyncio.wait_for(reader.read(), 3)
    assert b"data: [DONE]" in body
    assert body.endswith(b"0\r\n\r\n")
    await asyncio.wait_for(http.task, 3)
    writer.close()


async def test_a_stream_that_outlasts_the_drain_ends_with_an_error_event(
    build: Build, caplog: pytest.LogCaptureFixture
) -> None:
    stack = build()
    http = Http(stack, drain_s=0.1)
    reader, writer = await http.post("/v1/chat/completions", STREAM)
    await asyncio.wait_for(stack.vllm.first_byte.wait(), 2)
    http.server.stop()
    body = await asyncio.wait_for(reader.read(), 3)
    assert b"the server shut down before the answer was complete" in body
    assert body.endswith(b"0\r\n\r\n")
    await asyncio.wait_for(http.task, 3)
    writer.close()
    assert "Traceback" not in caplog.text


async def test_a_body_cut_short_by_a_failure_closes_the_connection(build: Build) -> None:
    stack = build()
    stack.vllm.kind = [(b"content-type", b"application/json")]
    stack.vllm.fail_after = RuntimeError("boom")
    stack.vllm.go.set()
    http = Http(stack, drain_s=1)
    reader, writer = await http.post("/v1/chat/completions", STREAM)
    body = await asyncio.wait_for(reader.read(), 3)
    assert b"data: one" in body
    assert not body.endswith(b"0\r\n\r\n")  # an HTTP client reports an incomplete read
    writer.close()
    http.server.stop()
    await asyncio.wait_for(http.task, 3)


@dataclass
class Running:
    """`_run` as a task, over engines of a factory; `server` is its HTTP server."""

    task: asyncio.Task[int]
    printed: io.StringIO
    listener: socket.socket
    servers: list[_Server]


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, registry: Registry, tiny: BaseModel, tmp_path: Path
) -> Iterator[Callable[[Factory], Running]]:
    servers: list[_Server] = []
    create = server.app.create_app

    class Recorded(_Server):
        def __init__(self, config: uvicorn.Config, admission: Admission, ready: asyncio.Event) -> None:
            super().__init__(config, admission, ready)
            servers.append(self)

    def create_apart(*args: Any, **kwargs: Any) -> App:
        return create(*args, **kwargs, collector=CollectorRegistry())

    monkeypatch.setattr(server.app, "_Server", Recorded)
    monkeypatch.setattr(server.app, "create_app", create_apart)  # a process takes each series once
    settings = Settings(home=tmp_path, port=0)
    listener = _listen(settings)
    _accept(listener, settings)

    def start(factory: Factory) -> Running:
        def host(*, prepare: Any, on_start: Any, **_: Any) -> EngineHost:
            return EngineHost(lambda: Namespace(model="tiny"), on_start, open=factory)

        monkeypatch.setattr(server.app, "EngineHost", host)
        console = Console(file=io.StringIO(), width=200)
        chosen = plan.Plan({"max_cpu_loras": plan.Choice(2, ""), "max_lora_rank": plan.Choice(8, "")}, (), {})
        task = asyncio.create_task(
            _run(settings, (), chosen, tiny, registry, listener, console, time.monotonic(), False)
        )
        assert isinstance(console.file, io.StringIO)
        return Running(task, console.file, listener, servers)

    with closing(listener):
        yield start


async def test_run_says_when_it_is_ready_and_ends_in_order(
    run: Callable[[Factory], Running], publish: Publish, tmp_path: Path
) -> None:
    publish("sql")
    factory = Factory()
    running = run(factory)
    await until(lambda: "ready in" in running.printed.getvalue())
    assert f"{_url(running.listener)}/v1  base `tiny-base`, 1 adapters" in running.printed.getvalue()
    running.servers[0].stop()
    assert await asyncio.wait_for(running.task, 3) == 0
    assert factory.log == ["up", "down"]
    assert (tmp_path / "cache" / "engine" / "ready.json").exists()


async def test_run_fails_with_the_engines_reason(run: Callable[[Factory], Running], tmp_path: Path) -> None:
    running = run(Factory([RuntimeError("no memory")], start_s=0.02))
    with pytest.raises(StartError, match="the engine did not start: no memory"):
        await asyncio.wait_for(running.task, 3)
    assert "ready in" not in running.printed.getvalue()
    assert not (tmp_path / "cache" / "engine" / "ready.json").exists()


async def test_stopped_during_the_start_it_takes_the_engine_down(
    run: Callable[[Factory], Running], tmp_path: Path
) -> None:
    factory = Factory(start_s=0.3)
    running = run(factory)
    await until(lambda: bool(running.servers))
    running.servers[0].stop()
    assert await asyncio.wait_for(running.task, 3) == 0
    assert factory.log == ["up", "down"]
    assert not (tmp_path / "cache" / "engine" / "ready.json").exists()


async def test_an_engine_that_dies_leaves_the_door_open(run: Callable[[Factory], Running]) -> None:
    factory = Factory()
    running = run(factory)
    await until(lambda: "ready in" in running.printed.getvalue())
    factory.plan = [RuntimeError("still broken") for _ in range(9)]
    factory.stoppers[0].should_exit = True
    await until(lambda: factory.log[-1] == "down")
    reader, writer = await asyncio.open_connection(*running.listener.getsockname()[:2])
    writer.write(b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), 2)
    assert b" 503 " in answer.splitlines()[0]
    assert b"restarting" in answer
    writer.close()
    running.servers[0].stop()
    assert await asyncio.wait_for(running.task, 3) == 0


def test_the_fakes_stand_where_the_real_ones_do() -> None:
    """A Session's methods that residency uses are those that the fake has."""
    for name in ("next_adapter_id", "add_adapter", "remove_adapter", "alive"):
        assert hasattr(Session, name)
        assert hasattr(FakeSession(FakeVllm()), name)
