"""The request path, top to bottom: authenticate, admit, resolve, generate, stream.

A pure ASGI application in front of vLLM's own: it reads a JSON body once, turns `model` into an exact adapter
version, holds that version in the engine while the answer runs, and passes everything else through untouched.
Every refusal happens before the first byte; whatever fails later is an error event in the stream, then its end.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from adapters.errors import AdapterError
from adapters.manifest import Manifest
from server import errors, usage
from server.admission import Admission
from server.auth import Authenticator
from server.engine.host import EngineHost
from server.engine.residency import Residency
from server.errors import BadRequest, BodyTooLarge, Forbidden, NotReady, ServerError
from server.metrics import Metrics
from server.resolve import Resolver, Target

log = logging.getLogger("onebase.gateway")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# vLLM routes that steer the engine rather than use it; they get rights of their own with keys that have rights.
_CLOSED = (
    "/abort_requests",
    "/collective_rpc",
    "/fault_tolerance/",
    "/finish_weight_update",
    "/inference/v1/abort_requests",
    "/init_weight_transfer_engine",
    # It takes the model from a header of its own, behind our back; every route that it leads to is there by name.
    "/invocations",
    "/is_scaling_elastic_ep",
    "/pause",
    "/release_kv_cache_memory",
    "/reset_",
    "/resume",
    "/scale_elastic_ep",
    "/server_info",
    "/shutdown_weight_transfer_engine",
    "/sleep",
    "/start_",
    "/stop_profile",
    "/update_weight",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/wake_up",
    "/weight_",
)


class Gateway:
    """`ours` answers our own routes and is asked first for what `owns(path)` says; vLLM answers the rest."""

    def __init__(
        self,
        *,
        ours: App,
        owns: Callable[[str], bool],
        host: EngineHost,
        authenticator: Authenticator,
        admission: Admission,
        resolver: Resolver,
        residency: Residency[Manifest],
        metrics: Metrics,
        max_body: int,
    ) -> None:
        self.ours = ours
        self.owns = owns
        self.host = host
        self.authenticator = authenticator
        self.admission = admission
        self.resolver = resolver
        self.residency = residency
        self.metrics = metrics
        self.max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            # Lifespan is ours; websockets need a realtime model, which this server does not run.
            await self.ours(scope, receive, send)
            return
        answer = _Answer(send, scope)
        token = usage.arrival.set(time.monotonic())
        try:
            await self._serve(scope, receive, answer)
        except ServerError as error:
            await self._refuse(answer, error)
        except AdapterError as error:
            await self._refuse(answer, errors.from_adapter_error(error))
        except asyncio.CancelledError:
            if not self.admission.closed:
                raise
            # Shutdown gave this request its time; the client is told that it was cut, instead of a bare end.
            problem = NotReady("the server shut down before the answer was complete", retry_after=5.0)
            await self._refuse(answer, problem)
        except (
            Exception
        ):  # the outermost edge: nobody sees a stack trace, the log has it with the request's id
            log.exception("request %s failed", answer.request_id)
            await self._refuse(answer, errors.internal())
        finally:
            usage.arrival.reset(token)

    async def _serve(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        path: str = scope["path"]
        scope = {**scope, "headers": _with_request_id(scope["headers"], answer.request_id)}

        # authenticate
        principal = self.authenticator.authenticate(path, scope["headers"])
        scope["state"] = {**scope.get("state", {}), "principal": principal}
        if self.owns(path):
            await self.ours(scope, receive, answer.send)
            return
        if path.startswith(_CLOSED):
            raise Forbidden(f"{path} steers the engine and is not open to requests", param="path")
        if scope["method"] != "POST":
            await self.host.session.app(scope, receive, answer.send)
            return

        # admit
        body = await _read(receive, self.max_body)
        if body is None:
            return
        async with self.admission.enter(principal):
            # resolve
            data = _parse(body, scope["headers"])
            session = self.host.session
            if data is None:
                await session.app(scope, _replay(body, receive), answer.send)
                return
            target = self.resolver.target(data)
            body = _dump(self.resolver.prepare(data, target, path))
            scope["headers"] = _as_json(scope["headers"], len(body))

            # generate and stream
            await self._generate(scope, _replay(body, receive), answer, target)

    async def _generate(self, scope: Scope, receive: Receive, answer: _Answer, target: Target) -> None:
        """Let vLLM answer, the adapter held in the engine until the last byte."""
        if target.manifest is None:
            await self.host.session.app(scope, receive, answer.send)
            return
        async with self.residency.lease(target.manifest):
            # Asked only now: the engine may have been restarted while this request waited for its adapter.
            await self.host.session.app(scope, receive, answer.send)

    async def _refuse(self, answer: _Answer, error: ServerError) -> None:
        self.metrics.refused.labels(error.code).inc()
        if answer.finished or (answer.started and not answer.events):
            return  # nothing can be added to a body of another kind; cut short, the client's HTTP library notices
        body = errors.body(error, answer.request_id, anthropic=answer.path.startswith("/v1/messages"))
        raw = json.dumps(body).encode()
        if answer.started:
            event = b"event: error\ndata: " if answer.path.startswith("/v1/messages") else b"data: "
            await answer.send(
                {"type": "http.response.body", "body": event + raw + b"\n\n", "more_body": False}
            )
            return
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(raw)).encode())]
        headers += [h for h in errors.headers(error, answer.request_id) if h[0] != b"x-request-id"]
        await answer.send({"type": "http.response.start", "status": error.status, "headers": headers})
        await answer.send({"type": "http.response.body", "body": raw})


class _Answer:
    """The way back to the client: adds the request id once, remembers how far the answer got."""

    def __init__(self, send: Send, scope: Scope) -> None:
        self._send = send
        self.path: str = scope["path"]
        self.request_id = _request_id(scope["headers"])
        self.started = False
        self.finished = False
        self.events = False  # the body is a stream of server-sent events

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            sent = list(message.get("headers", ()))
            self.events = any(n.lower() == b"content-type" and b"event-stream" in v for n, v in sent)
            kept = [h for h in sent if h[0].lower() != b"x-request-id"]
            message = {**message, "headers": [*kept, (b"x-request-id", self.request_id.encode())]}
        elif message["type"] == "http.response.body" and not message.get("more_body"):
            self.finished = True
        await self._send(message)


def _request_id(headers: list[tuple[bytes, bytes]]) -> str:
    """The client's own id when it is sane, else a new one."""
    for name, value in headers:
        if name == b"x-request-id" and 0 < len(value) <= 128 and value.isascii():
            text = value.decode()
            if all(c.isalnum() or c in "-_.:" for c in text):
                return text
    return uuid.uuid4().hex


def _with_request_id(headers: list[tuple[bytes, bytes]], request_id: str) -> list[tuple[bytes, bytes]]:
    return [*(h for h in headers if h[0] != b"x-request-id"), (b"x-request-id", request_id.encode())]


def _as_json(headers: list[tuple[bytes, bytes]], length: int) -> list[tuple[bytes, bytes]]:
    """Headers of the body that we hand on."""
    dropped = (b"content-length", b"transfer-encoding", b"content-type")
    kept = [header for header in headers if header[0] not in dropped]
    return [*kept, (b"content-length", str(length).encode()), (b"content-type", b"application/json")]


async def _read(receive: Receive, limit: int) -> bytes | None:
    """The whole body; None when the client went away. Raises BodyTooLarge (413) as soon as it is."""
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise BodyTooLarge(
                f"the body is over {limit >> 20} MiB; send less, or raise --max-body-mb", param="body"
            )
        chunks.append(chunk)
        if not message.get("more_body"):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _parse(body: bytes, headers: list[tuple[bytes, bytes]]) -> dict[str, Any] | None:
    """The JSON object in the body; None when there is no body, or it is something else by its own word (a form).

    `curl -d` says "form" of everything; what begins as a JSON object is taken as one.
    """
    sent = next((v for n, v in headers if n == b"content-type"), b"application/json")
    kind = sent.partition(b";")[0].lower()
    is_json = b"json" in kind or (b"urlencoded" in kind and body.lstrip()[:1] == b"{")
    if not body or not is_json:
        return None
    try:
        data = json.loads(body)
    except RecursionError:
        raise BadRequest("the body nests too deeply", param="body") from None
    except ValueError as error:
        raise BadRequest(f"the body is not valid JSON: {error}", param="body") from None
    if not isinstance(data, dict):
        raise BadRequest(f"the body must be a JSON object, not {type(data).__name__}", param="body")
    return data


def _dump(data: dict[str, Any]) -> bytes:
    try:
        return json.dumps(data).encode()
    except RecursionError:  # the encoder gives up a little earlier than the parser
        raise BadRequest("the body nests too deeply", param="body") from None


def _replay(body: bytes, receive: Receive) -> Receive:
    """Hands the body out once; afterwards the client's real messages, so that a disconnect aborts the work."""
    sent = False

    async def replayed() -> Message:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replayed
