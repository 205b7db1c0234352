"""Puts the server together and runs it: settings in, exit code out.

`create_app` wires the parts for a running or a fake engine; `main` is what `onebase serve` calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import FrameType

import psutil
import uvicorn
from prometheus_client import REGISTRY, CollectorRegistry
from rich.console import Console
from rich.table import Table

from adapters.base import BaseModel, open_base
from adapters.errors import AdapterError
from adapters.manifest import Manifest
from adapters.registry import Registry, fits
from adapters.store import LocalStore
from server import routes
from server.admission import Admission
from server.auth import Authenticator
from server.engine import hardware, plan, warm
from server.engine.host import EngineHost, Session, open_session, parse_flags, set_environment
from server.engine.residency import Residency
from server.errors import StartError
from server.gateway import Gateway
from server.metrics import Metrics
from server.progress import StartProgress
from server.resolve import Resolver
from server.settings import Loaded, Settings
from server.usage import metered

log = logging.getLogger("onebase")

_BIND = "VLLM_CPU_OMP_THREADS_BIND"
_LOG_WIDTH = 160  # columns where nobody's terminal says how many there are


@dataclass(slots=True)
class App:
    """The ASGI application and the parts that `main` steers."""

    asgi: Gateway
    admission: Admission
    residency: Residency[Manifest]
    metrics: Metrics

    async def attach(self, session: Session, base: BaseModel) -> None:
        """A fresh engine: count its work, forget what the last one held."""
        session.engine.generate = metered(session.engine.generate, self.metrics, base.name)
        self.residency.attach(session)


def create_app(
    settings: Settings,
    host: EngineHost,
    registry: Registry,
    base: BaseModel,
    *,
    places: int,
    max_rank: int | None = None,
    trust_templates: bool = False,
    collector: CollectorRegistry = REGISTRY,
) -> App:
    """Wire the request path; nothing starts here."""
    metrics = Metrics(collector, limit=settings.metric_adapters)
    parser = None if settings.tool_call_parser == "none" else settings.tool_call_parser
    resolver = Resolver(
        registry, base, tool_parser=parser, trust_templates=trust_templates, max_rank=max_rank
    )
    admission = Admission(
        running=settings.max_running, waiting=settings.max_waiting, max_wait_s=settings.max_wait_s
    )
    residency = Residency(
        places=places,
        files=registry.materialize,
        observer=metrics,
        patience=settings.slot_wait_s,
        longest_wait=settings.max_wait_s,
    )
    ours = routes.create_routes(
        host=host,
        registry=registry,
        base=base,
        resolver=resolver,
        residency=residency,
        admission=admission,
        metrics=metrics,
        created=int(time.time()),
    )
    gateway = Gateway(
        ours=ours,
        owns=routes.owns,
        host=host,
        authenticator=Authenticator(settings.api_keys),
        admission=admission,
        resolver=resolver,
        residency=residency,
        metrics=metrics,
        max_body=settings.max_body_mb << 20,
    )
    return App(gateway, admission, residency, metrics)


def main(loaded: Loaded) -> int:
    """Serve until a signal; raises StartError, SettingsError or AdapterError when it cannot."""
    settings = loaded.settings
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        console.width = _LOG_WIDTH
    if settings.engine_log == "quiet":
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"vllm\.")
    began = time.monotonic()
    listener = _listen(settings)
    record = settings.home / "cache" / "engine" / "start.json"
    with contextlib.closing(listener):
        with StartProgress(record, console=console) as progress, progress.phase("base model"):
            base = _named(open_base(settings.model, home=settings.home, name=settings.name), settings)
            registry = Registry(LocalStore(settings.store_path), cache=settings.home / "cache")
            demand = _demand(registry, base, settings)
            chosen = plan.make(settings, hardware.detect(), base.config, demand, loaded.vllm_flags)
        _show(chosen, base, demand, console)
        # Whoever binds threads by vLLM's own variable, or wants several workers, gets vLLM's own processes.
        warmed = settings.warm_start and _BIND in chosen.environment and _BIND not in os.environ
        set_environment(chosen.environment)
        if warmed:
            warm.begin(warm.thread_environment(plan.cores_of(chosen["threads"])))
        _accept(listener, settings)
        return asyncio.run(
            _run(settings, loaded.vllm_flags, chosen, base, registry, listener, console, began, warmed)
        )


async def _run(
    settings: Settings,
    vllm_flags: Sequence[str],
    chosen: plan.Plan,
    base: BaseModel,
    registry: Registry,
    listener: socket.socket,
    console: Console,
    began: float,
    warmed: bool,
) -> int:
    ready = asyncio.Event()

    async def on_start(session: Session) -> None:
        await app.attach(session, base)
        ready.set()

    host = EngineHost(
        prepare=lambda: parse_flags(str(base.folder), chosen.flags, served_name=base.name),
        on_start=on_start,
        open=partial(open_session, warmed=warmed),
    )
    trust = "--trust-request-chat-template" in vllm_flags
    app = create_app(
        settings,
        host,
        registry,
        base,
        places=int(chosen["max_cpu_loras"]),
        max_rank=int(chosen["max_lora_rank"]),
        trust_templates=trust,
    )
    config = uvicorn.Config(
        app.asgi,
        lifespan="off",
        log_level="warning",
        access_log=False,
        loop="none",
        timeout_graceful_shutdown=max(1, int(settings.drain_s)),
        timeout_keep_alive=60,
    )
    server = _Server(config, app.admission, ready)
    engine = asyncio.create_task(host.run())
    engine.add_done_callback(lambda _: server.stop())
    http = asyncio.create_task(server.serve(sockets=[listener]))
    record = settings.home / "cache" / "engine" / "ready.json"
    try:
        with StartProgress(record, console=console) as progress:
            with progress.phase("engine"):
                up = asyncio.create_task(ready.wait())
                await asyncio.wait({up, http}, return_when=asyncio.FIRST_COMPLETED)
                up.cancel()
            if not ready.is_set():
                progress.forget("engine")
        if ready.is_set():
            console.print(
                f"ready in {time.monotonic() - began:.1f} s: {_url(listener)}/v1  "
                f"base `{base.name}`, {len(registry.names())} adapters in the registry",
                highlight=False,
            )
        await http
    finally:
        host.stop()
        await engine
    return 0


class _Server(uvicorn.Server):
    """Closes the door at the first signal, lets the running requests finish, then stops."""

    def __init__(self, config: uvicorn.Config, admission: Admission, ready: asyncio.Event) -> None:
        super().__init__(config)
        self._admission = admission
        self._ready = ready

    def stop(self) -> None:
        self._admission.closed = True
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self._ready.is_set():
            _abandon_start(sig)
        self._admission.closed = True
        super().handle_exit(sig, frame)
        # uvicorn raises the signals again once it has stopped; an orderly end is no failure.
        self._captured_signals = [
            s for s in self._captured_signals if s not in (signal.SIGINT, signal.SIGTERM)
        ]


def _abandon_start(sig: int) -> None:
    """Leave at once: what starts the engine is deep in vLLM and cannot be called back, and nothing is half-written."""
    for _ in range(2):  # the fork server may have made one more while the first were listed
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    print("interrupted before the engine was up", file=sys.stderr, flush=True)
    os._exit(128 + sig)


def _listen(settings: Settings) -> socket.socket:
    """The socket, bound before anything slow starts. Raises StartError when the address is not to be had."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise _not_to_be_had(settings, error) from None
    listener.set_inheritable(False)
    return listener


def _accept(listener: socket.socket, settings: Settings) -> None:
    """Let connections in, now that somebody answers; until here a probe is refused rather than left waiting."""
    try:
        listener.listen(2048)
    except OSError as error:
        raise _not_to_be_had(settings, error) from None


def _not_to_be_had(settings: Settings, error: OSError) -> StartError:
    if error.errno == errno.EADDRINUSE:
        other = settings.port + 1 if settings.port < 65535 else 0
        mend = f"choose another with --port {other}, or stop what listens there"
        return StartError(f"port {settings.port} on {settings.host} is taken; {mend}", param="port")
    return StartError(
        f"cannot listen on {settings.host}:{settings.port}: {error.strerror}; see --host, --port"
    )


def _url(listener: socket.socket) -> str:
    address, port = listener.getsockname()[:2]
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


def _named(base: BaseModel, settings: Settings) -> BaseModel:
    """The base with the further names that the settings give it."""
    further = tuple(name for name in settings.base_aliases if name not in base.names)
    return replace(base, aliases=(*base.aliases, *further))


def _demand(registry: Registry, base: BaseModel, settings: Settings) -> plan.Demand:
    """What the registry holds for this base. Raises StartError when it holds adapters, and none of this base."""
    fitting = foreign = rank = 0
    others: set[str] = set()
    for name in registry.names():
        try:
            versions = registry.versions(name)
        except AdapterError:
            continue
        mine = [v for v in versions if fits(v, base)]
        others.update(v.base.name for v in versions if v not in mine)
        fitting += bool(mine)
        foreign += not mine
        rank = max([rank, *(v.lora.rank for v in mine if v.lora)])
    if foreign and not fitting and not settings.allow_foreign_store:
        raise StartError(
            f"none of the {foreign} adapters in {settings.store_path} fits the base `{base.name}` (they are for "
            f"{', '.join(sorted(others)[:4])}); serve that base, name another --store, or start without adapters "
            "by --allow-foreign-store",
            param="store",
        )
    return plan.Demand(fitting, rank)


def _show(chosen: plan.Plan, base: BaseModel, demand: plan.Demand, console: Console) -> None:
    table = Table(
        title=f"{base.name}: {demand.adapters} adapters", title_justify="left", box=None, pad_edge=False
    )
    for heading in ("setting", "value", "why"):
        table.add_column(heading, overflow="fold")
    for key, choice in chosen.choices.items():
        table.add_row(key, str(choice.value), choice.reason)
    console.print(table, highlight=False)
