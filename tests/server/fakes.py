"""What stands for vLLM in these tests: its ASGI application, an engine with places, the host; and an ASGI client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from server.engine.host import EngineHost, Session
from server.errors import NotReady, Unservable
from server.gateway import Message, Receive, Scope, Send

Headers = list[tuple[bytes, bytes]]
JSON: Headers = [(b"content-type", b"application/json")]
EVENTS: Headers = [(b"content-type", b"text/event-stream; charset=utf-8")]


@dataclass
class FakeVllm:
    """Answers every path with what it was asked; `stream` waits for `go` between its first and last event."""

    bodies: list[bytes] = field(default_factory=list)
    scopes: list[Scope] = field(default_factory=list)
    kind: Headers = field(default_factory=lambda: EVENTS)
    go: asyncio.Event = field(default_factory=asyncio.Event)
    first_byte: asyncio.Event = field(default_factory=asyncio.Event)
    fail_before: Exception | None = None
    fail_after: Exception | None = None
    disconnected: bool = False

    @property
    def body(self) -> dict[str, Any]:
        """The last JSON body."""
        found = json.loads(self.bodies[-1])
        assert isinstance(found, dict)
        return found

    def header(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.scopes[-1]["headers"] if key == name]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        if scope["method"] == "POST":
            message = await receive()
            self.bodies.append(message["body"])
        if self.fail_before:
            raise self.fail_before
        if self.bodies and b'"stream": true' in self.bodies[-1]:
            await self._stream(receive, send)
            return
        model = (
            json.loads(self.bodies[-1]).get("model") if self.bodies and self.bodies[-1][:1] == b"{" else None
        )
        await send({"type": "http.response.start", "status": 200, "headers": JSON})
        await send({"type": "http.response.body", "body": json.dumps({"model": model}).encode()})

    async def _stream(self, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.kind})
        await send({"type": "http.response.body", "body": b"data: one\n\n", "more_body": True})
        self.first_byte.set()
        go, left = asyncio.create_task(self.go.wait()), asyncio.create_task(_disconnect(receive))
        try:
            await asyncio.wait({go, left}, return_when=asyncio.FIRST_COMPLETED)
            if left.done():
                self.disconnected = True
                return
            if self.fail_after:
                raise self.fail_after
            await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
        finally:
            go.cancel()
            left.cancel()


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@dataclass
class FakeSession:
    """A Session: keeps what an engine would hold, knows nothing of places."""

    app: Any
    held: dict[str, int] = field(default_factory=dict)
    bad: set[str] = field(default_factory=set)
    alive: bool = True
    load_s: float = 0.0
    ids: int = 0

    def next_adapter_id(self) -> int:
        self.ids += 1
        return self.ids

    async def add_adapter(self, ref: str, lora_id: int, folder: Path) -> None:
        await asyncio.sleep(self.load_s)
        if not self.alive:
            raise NotReady("the engine died", retry_after=5.0)
        if ref in self.bad:
            raise Unservable(f"the engine refuses `{ref}`: bad")
        assert (folder / "adapter_model.safetensors").is_file()
        self.held[ref] = lora_id

    async def remove_adapter(self, ref: str, lora_id: int) -> None:
        assert self.held.pop(ref) == lora_id

    def __call__(self) -> Session:
        return cast("Session", self)


def host(session: FakeSession | None, state: str = "ready") -> EngineHost:
    """An EngineHost that nobody runs, with `session` as its engine."""

    def prepare() -> Any:
        raise AssertionError

    async def on_start(_: Session) -> None:
        raise AssertionError

    made = EngineHost(prepare, on_start, state=state, max_model_len=512)
    made._session = session() if session else None
    return made


@dataclass
class Reply:
    """All that an application sent."""

    messages: list[Message] = field(default_factory=list)

    @property
    def status(self) -> int:
        return int(next(m["status"] for m in self.messages if m["type"] == "http.response.start"))

    @property
    def headers(self) -> dict[str, str]:
        start = next(m for m in self.messages if m["type"] == "http.response.start")
        names = [key for key, _ in start["headers"]]
        assert len(names) == len(set(names)), names
        return {key.decode(): value.decode() for key, value in start["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(m.get("body", b"") for m in self.messages if m["type"] == "http.response.body")

    @property
    def ended(self) -> bool:
        last = self.messages[-1]
        return last["type"] == "http.response.body" and not last.get("more_body")

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        found = self.json["error"]
        assert isinstance(found, dict)
        return found


@dataclass
class Call:
    """One request on its way: `leave` is the client going away."""

    task: asyncio.Task[None]
    reply: Reply
    leave: Callable[[], None]

    async def done(self) -> Reply:
        await asyncio.wait_for(self.task, 5)
        return self.reply


Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]


def call(
    app: Asgi,
    path: str,
    body: Any = None,
    *,
    method: str | None = None,
    headers: dict[str, str] | None = None,
    chunks: list[bytes] | None = None,
) -> Call:
    """Start a request; a dict is sent as JSON, `chunks` one message each."""
    inbox: asyncio.Queue[Message] = asyncio.Queue()
    if chunks is None:
        chunks = [body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()]
    for number, chunk in enumerate(chunks):
        inbox.put_nowait({"type": "http.request", "body": chunk, "more_body": number < len(chunks) - 1})
    sent = {"content-type": "application/json"} | (headers or {})
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method or ("GET" if body is None and len(chunks) == 1 else "POST"),
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(key.lower().encode(), value.encode()) for key, value in sent.items() if value],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "state": {},
    }
    reply = Reply()

    async def send(message: Message) -> None:
        reply.messages.append(message)

    async def run() -> None:
        await app(scope, inbox.get, send)

    return Call(asyncio.create_task(run()), reply, lambda: inbox.put_nowait({"type": "http.disconnect"}))


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what has no event of its own."""
    for _ in range(3000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise TimeoutError


async def ask(app: Asgi, path: str, body: Any = None, **options: Any) -> Reply:
    """A request and its whole answer."""
    return await call(app, path, body, **options).done()
