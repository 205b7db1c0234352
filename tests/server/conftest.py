"""A tiny base, a registry on a temporary folder, and the server's application over a fake vLLM."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from adapters.base import BaseModel, open_base
from adapters.manifest import Manifest
from adapters.registry import Registry
from adapters.store import LocalStore
from server.app import App, create_app
from server.engine.host import EngineHost
from server.settings import Settings
from tests import bad_adapters
from tests.adapters.conftest import write_base
from tests.server import fakes
from tests.server.fakes import FakeSession, FakeVllm

Publish = Callable[..., Manifest]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    """Read once; nothing in these tests changes it."""
    home = tmp_path_factory.mktemp("base")
    base = open_base(str(write_base(home / "tiny-base")), home=home)
    return replace(base, aliases=("org/Tiny-Base",))


@pytest.fixture(scope="session")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    """Another base: same names, other weights and shapes."""
    home = tmp_path_factory.mktemp("foreign")
    return open_base(str(write_base(home / "other-base", seed=1, hidden=8)), home=home)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(LocalStore(tmp_path / "registry"), cache=tmp_path / "cache")


@pytest.fixture
def publish(registry: Registry, tiny: BaseModel, tmp_path: Path) -> Publish:
    """`publish(name, **options)`: a version with content of its own."""
    made = 0

    def make(name: str, *, base: BaseModel = tiny, **options: Any) -> Manifest:
        nonlocal made
        made += 1
        folder = bad_adapters.good(base, seed=made).write(tmp_path / "drafts" / str(made))
        return registry.publish(name, folder, base, **options)

    return make


@dataclass
class Stack:
    """The whole request path, and the fakes at its ends."""

    app: App
    host: EngineHost
    session: FakeSession
    vllm: FakeVllm
    collector: CollectorRegistry

    def call(self, path: str, body: Any = None, **options: Any) -> fakes.Call:
        return fakes.call(self.app.asgi, path, body, **options)

    async def ask(self, path: str, body: Any = None, **options: Any) -> fakes.Reply:
        return await fakes.ask(self.app.asgi, path, body, **options)

    async def chat(self, model: str | None, **fields: Any) -> fakes.Reply:
        body = {"messages": [{"role": "user", "content": "hello"}], **fields}
        return await self.ask("/v1/chat/completions", body if model is None else {"model": model, **body})


Build = Callable[..., Stack]


@pytest.fixture
def build(registry: Registry, tiny: BaseModel, tmp_path: Path) -> Build:
    """`build(places=2, **settings)`: a server whose engine is up."""

    def make(*, places: int = 2, trust_templates: bool = False, **settings: Any) -> Stack:
        vllm = FakeVllm()
        session = FakeSession(vllm)
        host = fakes.host(session)
        collector = CollectorRegistry()
        app = create_app(
            Settings(home=tmp_path, slot_wait_s=0.05, **settings),
            host,
            registry,
            tiny,
            places=places,
            trust_templates=trust_templates,
            collector=collector,
        )
        app.residency.attach(session())
        return Stack(app, host, session, vllm, collector)

    return make
