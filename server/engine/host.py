"""Runs vLLM inside our process and keeps it running: start, watch, restart with backoff, stop.

Owns the engine's life and vLLM's own OpenAI application; hands both out as a `Session` while the engine is up.
Does not know HTTP routes, adapters' names or keys.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from argparse import Namespace
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.engine import warm
from server.errors import NotReady, StartError, Unservable

if TYPE_CHECKING:
    from fastapi import FastAPI
    from vllm.v1.engine.async_llm import AsyncLLM

log = logging.getLogger("onebase.engine")

_BACKOFF_S = (1.0, 2.0, 5.0, 10.0, 30.0)


@dataclass(slots=True)
class Session:
    """One life of the engine: the client, vLLM's app and vLLM's table of models."""

    engine: AsyncLLM
    app: FastAPI
    models: Any
    generation: int

    @property
    def alive(self) -> bool:
        return not self.engine.errored

    def next_adapter_id(self) -> int:
        """vLLM's own counter: ids that collide silently serve the wrong adapter."""
        return int(self.models.lora_id_counter.inc(1))

    async def add_adapter(self, ref: str, lora_id: int, folder: Path) -> None:
        """Load an adapter folder and make it known to vLLM's routes as `ref`.

        Raises Unservable (422) with the engine's reason, or NotReady (503) when the engine died meanwhile.
        """
        from vllm.lora.request import LoRARequest

        request = LoRARequest(lora_name=ref, lora_int_id=lora_id, lora_path=str(folder))
        try:
            await self.engine.add_lora(request)
        except Exception as error:  # the engine hands on whatever its worker raised
            if not self.alive:
                raise _died() from error
            # vLLM leaves a failed adapter half registered: the same id would then "succeed".
            await self._forget(lora_id)
            raise Unservable(f"the engine refuses `{ref}`: {_one_line(error)}", param="model") from error
        self.models.lora_requests[ref] = request

    async def remove_adapter(self, ref: str, lora_id: int) -> None:
        """Take an adapter out of vLLM's routes and out of the engine's memory; NotReady (503) when it has died."""
        self.models.lora_requests.pop(ref, None)
        await self._forget(lora_id)

    async def _forget(self, lora_id: int) -> None:
        try:
            await self.engine.remove_lora(lora_id)
        except Exception as error:
            if not self.alive:
                raise _died() from error
            raise


def _died() -> NotReady:
    return NotReady("the engine died; it is being restarted", retry_after=5.0)


class Stopper:
    """Stands where vLLM's handlers expect the HTTP server; they set `should_exit` when the engine has died."""

    def __init__(self) -> None:
        self.died = asyncio.Event()

    @property
    def should_exit(self) -> bool:
        return self.died.is_set()

    @should_exit.setter
    def should_exit(self, value: bool) -> None:
        if value:
            self.died.set()


def parse_flags(model: str, flags: Sequence[str], *, served_name: str, seed: int = 0) -> Namespace:
    """vLLM's own parsed arguments; raises StartError with vLLM's words for a flag that it refuses."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser(prog="onebase serve"))

    def refuse(message: str) -> None:
        raise StartError(
            f"the engine refuses its flags: {message}; `onebase serve --help` lists ours, vLLM's are passed on"
        )

    parser.error = refuse
    args: Namespace = parser.parse_args(
        [
            "--model",
            model,
            "--served-model-name",
            served_name,
            "--disable-fastapi-docs",
            "--seed",
            str(seed),
            *flags,
        ]
    )
    _refuse_ignored(args)
    # A chat template may come from an adapter's manifest; the gateway refuses one that a client sends.
    args.trust_request_chat_template = True
    args.api_key = None
    try:
        validate_parsed_serve_args(args)
    except (ValueError, TypeError) as error:
        raise StartError(f"the engine refuses its flags: {error}") from None
    return args


# vLLM's flags that its own front end or loader would honour and ours does not: what to do instead.
_IGNORED = {
    "model_tag": "write the model first, `onebase serve MODEL --flags`",
    "revision": "write MODEL@REVISION",
    "lora_modules": "publish the adapters, `onebase adapters publish NAME FOLDER`",
    "root_path": "let the proxy in front strip the path",
    "uds": "listen on --host and --port",
    "ssl_keyfile": "end TLS in a proxy in front",
    "ssl_certfile": "end TLS in a proxy in front",
    "ssl_ca_certs": "end TLS in a proxy in front",
}


def _refuse_ignored(args: Namespace) -> None:
    """Raises StartError for a flag that would be taken and then have no effect."""
    for name, mend in _IGNORED.items():
        value = getattr(args, name, None)
        if value:
            shown = (
                f"MODEL `{value}` after other flags"
                if name == "model_tag"
                else f"--{name.replace('_', '-')} {value}"
            )
            raise StartError(f"{shown} would have no effect here; {mend}", param=name)


@contextlib.asynccontextmanager
async def open_session(
    args: Namespace, stopper: Stopper, generation: int, *, warmed: bool = False
) -> AsyncIterator[Session]:
    """Start the engine and build vLLM's complete application around it; both end with the context.

    The engine is made in a thread, as that blocks for half a minute and probes must be answered meanwhile.
    `warmed`: the fork server of `warm` was started, and the engine comes from it.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.launcher import validate_api_server_args
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    validate_api_server_args(args)
    engine_args = AsyncEngineArgs.from_cli_args(args)
    config = await asyncio.to_thread(engine_args.create_engine_config, UsageContext.OPENAI_API_SERVER)
    with warm.one_process(config) if warmed else contextlib.nullcontext():
        engine = await asyncio.to_thread(
            AsyncLLM.from_vllm_config,
            vllm_config=config,
            usage_context=UsageContext.OPENAI_API_SERVER,
            enable_log_requests=engine_args.enable_log_requests,
            aggregate_engine_logging=engine_args.aggregate_engine_logging,
            disable_log_stats=engine_args.disable_log_stats,
        )
    try:
        await engine.reset_mm_cache()
        tasks = await engine.get_supported_tasks()
        app = build_app(args, tasks, engine.model_config)
        await init_app_state(engine, app.state, args, tasks)
        app.state.server = stopper
        models = app.state.openai_serving_models
        # A mounted app gets no lifespan of its own from its parent.
        async with app.router.lifespan_context(app):
            yield Session(engine, app, models, generation)
    finally:
        # vLLM cancels it last. In a thread that is too late: it would log an orderly end as the engine's death.
        if engine.output_handler is not None:
            engine.output_handler.cancel()
        await asyncio.to_thread(engine.shutdown, config.shutdown_timeout)


Open = Callable[[Namespace, Stopper, int], AbstractAsyncContextManager[Session]]


@dataclass(slots=True)
class EngineHost:
    """Keeps one engine alive.

    `prepare()` gives vLLM's parsed arguments; it runs once, in a thread, since importing vLLM takes seconds.
    `on_start(session)` runs each time an engine is up, before requests are let in. `open` makes an engine;
    `backoff` are the seconds before each restart, the last for all further ones.
    """

    prepare: Callable[[], Namespace]
    on_start: Callable[[Session], Awaitable[None]]
    open: Open = open_session
    backoff: Sequence[float] = _BACKOFF_S
    state: str = "starting"
    ready_s: float | None = None
    restarts: int = 0
    problem: str | None = None
    max_model_len: int | None = None
    _session: Session | None = None
    _stop: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def session(self) -> Session:
        """The running engine; raises NotReady (503) while there is none."""
        session = self._session
        if session is None or not session.alive:
            wait = 5.0 if self.state == "restarting" else 10.0
            raise NotReady(f"the engine is {self.state}; try again in {wait:.0f} s", retry_after=wait)
        return session

    @property
    def ready(self) -> bool:
        return self._session is not None and self._session.alive

    def stop(self) -> None:
        self._stop.set()

    async def run(self) -> None:
        """Start, watch and restart until `stop`; an engine that never came up raises StartError."""
        try:
            await self._run()
        finally:
            self._session = None
            if self.state != "failed":
                self.state = "stopped"

    async def _run(self) -> None:
        attempt = 0
        try:
            args = await asyncio.to_thread(self.prepare)
        except Exception as error:
            raise self._failed(error) from error
        while not self._stop.is_set():
            began = time.monotonic()
            stopper = Stopper()
            try:
                async with self.open(args, stopper, self.restarts) as session:
                    await self.on_start(session)
                    self._session, self.state, self.problem = session, "ready", None
                    self.max_model_len = session.engine.model_config.max_model_len
                    self.ready_s = time.monotonic() - began
                    await self._watch(session, stopper)
                    lived = time.monotonic() - began - self.ready_s
                    attempt = 0 if lived > 60 else attempt
                    self._session = None
                    if self._stop.is_set():
                        self.state = "stopping"
                    else:
                        self.state, self.problem = "restarting", "the engine died"
            except Exception as error:  # whatever the engine raises at start is one line for the user
                self._session = None
                if self.ready_s is None:
                    raise self._failed(error) from error
                self.state, self.problem = "restarting", _one_line(error)
                log.error("engine: %s", self.problem)
            if self._stop.is_set():
                break
            wait = self.backoff[min(attempt, len(self.backoff) - 1)]
            attempt += 1
            self.restarts += 1
            log.error("the engine is down; restart %d in %.0f s", self.restarts, wait)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), wait)

    def _failed(self, error: Exception) -> StartError:
        """What ends the first start, in one line."""
        log.debug("engine start failed", exc_info=error)
        self.state, self.problem = "failed", _one_line(error)
        if isinstance(error, StartError):
            return error
        return StartError(f"the engine did not start: {self.problem}")

    async def _watch(self, session: Session, stopper: Stopper) -> None:
        """Return when the engine has died or `stop` was asked for."""
        stop = asyncio.create_task(self._stop.wait())
        died = asyncio.create_task(stopper.died.wait())
        try:
            while session.alive:
                done, _ = await asyncio.wait({stop, died}, timeout=0.5, return_when=asyncio.FIRST_COMPLETED)
                if done:
                    return
        finally:
            stop.cancel()
            died.cancel()


def set_environment(environment: Mapping[str, str]) -> None:
    """Put the plan's variables in place before vLLM is imported.

    What the user exported wins, but for what is a setting of ours (there the command line wins), and LD_PRELOAD,
    where ours is added.
    """
    for key, value in environment.items():
        if key == "LD_PRELOAD" and value not in os.environ.get(key, "").split(":"):
            os.environ[key] = ":".join(filter(None, (os.environ.get(key), value)))
        elif key.startswith("ONEBASE_"):
            os.environ[key] = value
        else:
            os.environ.setdefault(key, value)
    # Its unauthenticated load routes must never be open in our server.
    os.environ.pop("VLLM_ALLOW_RUNTIME_LORA_UPDATING", None)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:400]
