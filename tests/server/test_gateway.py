"""The request path over a fake vLLM: what it is handed, what the client gets, and what is held meanwhile."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from server.engine.host import Session
from server.gateway import Message
from tests.server import fakes
from tests.server.conftest import Build, Publish, Stack

CHAT = "/v1/chat/completions"
SAY = [{"role": "user", "content": "hello"}]


def requests_refused(stack: Stack, code: str) -> float:
    return stack.collector.get_sample_value("onebase_refusals_total", {"code": code}) or 0.0


async def test_the_model_becomes_the_exact_version(build: Build, publish: Publish) -> None:
    publish("sql")
    publish("sql", alias="production")
    publish("sql", alias="canary")
    stack = build()
    for asked, exact in (("sql", "sql@2"), ("sql@1", "sql@1"), ("sql:canary", "sql@3"), ("sql@3", "sql@3")):
        reply = await stack.chat(asked)
        assert (reply.status, reply.json) == (200, {"model": exact})
        assert stack.vllm.body["model"] == exact
        assert exact in stack.session.held
        assert stack.vllm.body["messages"] == SAY
        assert int(stack.vllm.header(b"content-length")[0]) == len(stack.vllm.bodies[-1])


@pytest.mark.parametrize("model", [None, "", "tiny-base", "org/Tiny-Base"])
async def test_the_bases_names_and_none_mean_the_base(build: Build, model: str | None) -> None:
    stack = build()
    assert (await stack.chat(model)).json == {"model": "tiny-base"}
    assert not stack.session.held


@pytest.mark.parametrize(
    ("model", "adapter_id", "answers"),
    [
        ("tiny-base", "sql", "sql@1"),
        (None, "sql", "sql@1"),
        ("sql", "sql", "sql@1"),
        ("sql", None, "sql@1"),
        ("sql", "", "sql@1"),
        ("tiny-base", "tiny-base", "tiny-base"),
        ("tiny-base", None, "tiny-base"),
        (None, "", "tiny-base"),
    ],
)
async def test_adapter_id(
    build: Build, publish: Publish, model: str | None, adapter_id: str | None, answers: str
) -> None:
    publish("sql")
    stack = build()
    assert (await stack.chat(model, adapter_id=adapter_id)).json == {"model": answers}
    assert "adapter_id" not in stack.vllm.body


async def test_two_adapters_in_one_request_are_refused(build: Build, publish: Publish) -> None:
    publish("sql")
    publish("email")
    stack = build()
    reply = await stack.chat("sql", adapter_id="email")
    assert (reply.status, reply.error["param"]) == (400, "adapter_id")
    assert "'sql'" in reply.error["message"]
    assert not stack.vllm.bodies


async def test_an_unknown_model_is_404_naming_the_nearest(build: Build, publish: Publish) -> None:
    publish("customer-emails")
    stack = build()
    reply = await stack.chat("customer-email")
    assert reply.status == 404
    assert reply.error["code"] == "model_not_found"
    assert reply.error["param"] == "model"
    assert "`customer-emails`" in reply.error["message"]
    assert reply.error["request_id"] == reply.headers["x-request-id"]
    assert requests_refused(stack, "model_not_found") == 1
    assert (await stack.chat(None, adapter_id="customer-email")).error["param"] == "adapter_id"


async def test_an_adapter_that_the_engine_refuses_is_422_and_not_retried(
    build: Build, publish: Publish
) -> None:
    publish("sql")
    stack = build()
    stack.session.bad.add("sql@1")
    reply = await stack.chat("sql")
    assert reply.status == 422
    assert reply.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{", "not valid JSON"),
        (b'{"model": }', "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[1]", "must be a JSON object, not list"),
        (b"null", "must be a JSON object, not NoneType"),
        (b'{"a":' * 100_000, "nests too deeply"),
        (b'{"model": 3}', "model = '3' must be a text"),
        (b'{"model": "sql", "adapter_id": ["x"]}', "must be a text"),
        (b'{"model": "a b"}', "not a reference"),
        (b'{"model": "\\ud800"}', "not a reference"),
        (b'{"n": ' + b"9" * 5000 + b"}", "not valid JSON"),
    ],
)
async def test_a_wrong_body_is_400(build: Build, body: bytes, says: str) -> None:
    stack = build()
    reply = await stack.ask(CHAT, body)
    assert reply.status == 400
    assert says in reply.error["message"]
    assert not stack.vllm.bodies
    assert stack.app.admission.running == 0


@pytest.mark.parametrize("depth", [900, 930, 960, 990, 1100])
async def test_no_depth_of_nesting_is_an_internal_error(build: Build, depth: int) -> None:
    body = b'{"model": "tiny-base", "x": ' + b"[" * depth + b"]" * depth + b"}"
    assert (await build().ask(CHAT, body)).status in (200, 400)


async def test_too_large_a_body_is_413_before_it_is_whole(build: Build) -> None:
    stack = build(max_body_mb=1)
    call = stack.call(CHAT, chunks=[b"x" * 600_000, b"x" * 600_000, b"never read"])
    reply = await call.done()
    assert (reply.status, reply.error["code"]) == (413, "request_too_large")
    assert "1 MiB" in reply.error["message"]


async def test_a_body_in_pieces_is_put_together(build: Build) -> None:
    stack = build()
    whole = json.dumps({"model": "tiny-base", "messages": SAY}).encode()
    reply = await stack.call(CHAT, chunks=[whole[:9], whole[9:20], whole[20:]]).done()
    assert reply.status == 200
    assert stack.vllm.body["messages"] == SAY


@pytest.mark.parametrize(
    "kind",
    [
        "application/x-www-form-urlencoded",
        "Application/X-WWW-Form-UrlEncoded",
        "application/json; charset=utf-8",
        "Application/JSON",
        "",
    ],
)
async def test_json_is_taken_as_json_whatever_curl_calls_it(
    build: Build, publish: Publish, kind: str
) -> None:
    publish("sql")
    stack = build()
    reply = await stack.ask(CHAT, {"model": "sql", "messages": SAY}, headers={"content-type": kind})
    assert reply.json == {"model": "sql@1"}
    assert stack.vllm.header(b"content-type") == [b"application/json"]


async def test_another_kind_of_body_and_none_pass_untouched(build: Build) -> None:
    stack = build()
    form = b'--json\r\ncontent-disposition: form-data; name="model"\r\n\r\nx\r\n--json--'
    kind = "multipart/form-data; boundary=json"
    assert (await stack.ask("/v1/audio/transcriptions", form, headers={"content-type": kind})).status == 200
    assert stack.vllm.bodies == [form]
    assert (await stack.ask("/v1/responses/resp_1/cancel", method="POST")).status == 200
    assert stack.vllm.bodies[-1] == b""


async def test_get_passes_through(build: Build) -> None:
    stack = build()
    assert (await stack.ask("/version")).status == 200
    assert stack.vllm.scopes[-1]["path"] == "/version"


async def test_a_stream_comes_as_it_is_and_holds_its_adapter_to_the_last_byte(
    build: Build, publish: Publish
) -> None:
    publish("sql")
    publish("email")
    stack = build(places=1, max_wait_s=0.2)
    stream = stack.call(CHAT, {"model": "sql", "messages": SAY, "stream": True})
    await asyncio.wait_for(stack.vllm.first_byte.wait(), 2)
    assert stack.app.admission.running == 1
    refused = await stack.chat("email")  # the only place is in use
    assert (refused.status, refused.headers["retry-after"]) == (503, "5")
    assert list(stack.session.held) == ["sql@1"]
    stack.vllm.go.set()
    reply = await stream.done()
    assert reply.body == b"data: one\n\ndata: [DONE]\n\n"
    assert reply.ended
    assert (await stack.chat("email")).status == 200
    assert list(stack.session.held) == ["email@1"]
    assert stack.app.admission.running == 0


async def test_a_disconnect_reaches_vllm_and_frees_the_adapter(build: Build, publish: Publish) -> None:
    publish("sql")
    publish("email")
    stack = build(places=1)
    stream = stack.call(CHAT, {"model": "sql", "messages": SAY, "stream": True})
    await asyncio.wait_for(stack.vllm.first_byte.wait(), 2)
    stream.leave()
    await stream.done()
    assert stack.vllm.disconnected
    assert (await stack.chat("email")).status == 200


async def test_a_client_that_leaves_before_its_body_is_whole_costs_nothing(build: Build) -> None:
    stack = build()
    call = stack.call(CHAT, chunks=[b"{", b""])
    await asyncio.sleep(0)
    gone = fakes.call(stack.app.asgi, CHAT, chunks=[])
    gone.leave()
    assert (await gone.done()).messages == []
    assert (await call.done()).status == 400
    assert not stack.vllm.scopes


async def test_a_failure_before_the_first_byte_is_json_with_the_id(
    build: Build, caplog: pytest.LogCaptureFixture
) -> None:
    stack = build()
    stack.vllm.fail_before = RuntimeError("secret detail")
    with caplog.at_level(logging.ERROR, "onebase.gateway"):
        reply = await stack.ask(CHAT, {"messages": SAY}, headers={"x-request-id": "mine-1"})
    assert reply.status == 500
    assert reply.error["request_id"] == reply.headers["x-request-id"] == "mine-1"
    assert "secret" not in reply.error["message"]
    assert "mine-1" in caplog.text
    assert "secret detail" in caplog.text
    assert stack.app.admission.running == 0


async def test_a_failure_in_the_stream_is_an_event_and_its_end(build: Build, publish: Publish) -> None:
    publish("sql")
    stack = build()
    stack.vllm.fail_after = RuntimeError("boom")
    stack.vllm.go.set()
    reply = await stack.ask(CHAT, {"model": "sql", "messages": SAY, "stream": True})
    assert reply.status == 200
    first, last = reply.body.decode().strip().split("\n\n")
    assert first == "data: one"
    assert json.loads(last.removeprefix("data: "))["error"]["request_id"] == reply.headers["x-request-id"]
    assert reply.ended


async def test_a_failure_in_another_kind_of_body_adds_nothing_to_it(build: Build) -> None:
    stack = build()
    stack.vllm.kind = [(b"content-type", b"application/json"), (b"content-length", b"500")]
    stack.vllm.fail_after = RuntimeError("boom")
    stack.vllm.go.set()
    reply = await stack.ask(CHAT, {"messages": SAY, "stream": True})
    assert reply.body == b"data: one\n\n"
    assert not reply.ended  # the HTTP server closes the connection, and the client notices


async def test_shutdown_tells_the_running_stream(build: Build) -> None:
    stack = build()
    stream = stack.call(CHAT, {"messages": SAY, "stream": True})
    await asyncio.wait_for(stack.vllm.first_byte.wait(), 2)
    stack.app.admission.closed = True
    late = await stack.chat("tiny-base")
    assert (late.status, late.headers["retry-after"]) == (503, "5")
    stream.task.cancel()
    reply = await stream.done()
    assert reply.ended
    assert "shut down" in json.loads(reply.body.decode().split("data: ")[2])["error"]["message"]


async def test_a_cancellation_while_open_stays_one(build: Build) -> None:
    stack = build()
    stream = stack.call(CHAT, {"messages": SAY, "stream": True})
    await asyncio.wait_for(stack.vllm.first_byte.wait(), 2)
    stream.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stream.done()
    assert stack.app.admission.running == 0


async def test_anthropic_clients_get_their_own_shape(build: Build) -> None:
    stack = build()
    reply = await stack.ask("/v1/messages", {"model": "nothing", "messages": SAY, "max_tokens": 1})
    assert reply.status == 404
    assert reply.json == {
        "type": "error",
        "error": {"type": "not_found_error", "message": reply.error["message"]},
        "request_id": reply.headers["x-request-id"],
    }
    stack.vllm.fail_after = RuntimeError("boom")
    stack.vllm.go.set()
    stream = await stack.ask("/v1/messages", {"messages": SAY, "stream": True})
    event = stream.body.decode().split("\n\n")[1]
    assert event.startswith("event: error\ndata: ")
    assert json.loads(event.partition("data: ")[2])["error"]["type"] == "api_error"


@pytest.mark.parametrize("sent", ["abc-1", "a.b:c_d", "x" * 128])
async def test_a_sane_request_id_is_kept(build: Build, sent: str) -> None:
    stack = build()
    reply = await stack.ask(CHAT, {"messages": SAY}, headers={"x-request-id": sent})
    assert reply.headers["x-request-id"] == sent
    assert stack.vllm.header(b"x-request-id") == [sent.encode()]


@pytest.mark.parametrize("sent", ["", "a b", "x" * 129, "<script>", "a\r\nb", "é"])
async def test_any_other_is_replaced(build: Build, sent: str) -> None:
    stack = build()
    reply = await stack.ask(CHAT, {"messages": SAY}, headers={"x-request-id": sent})
    assert len(reply.headers["x-request-id"]) == 32
    assert stack.vllm.header(b"x-request-id") == [reply.headers["x-request-id"].encode()]


async def test_keys(build: Build) -> None:
    stack = build(api_keys=("right", "also"))
    body = {"messages": SAY}
    for headers in (
        {},
        {"authorization": "Bearer wrong"},
        {"x-api-key": "rig"},
        {"authorization": "Basic right"},
    ):
        reply = await stack.ask(CHAT, body, headers=headers)
        assert (reply.status, reply.error["code"]) == (401, "invalid_api_key")
    assert not stack.vllm.scopes
    for headers in (
        {"authorization": "Bearer right"},
        {"x-api-key": "also"},
        {"authorization": "bearer also"},
    ):
        assert (await stack.ask(CHAT, body, headers=headers)).status == 200
    for probe in ("/livez", "/readyz", "/health", "/ping", "/metrics"):
        assert (await stack.ask(probe)).status == 200
    for closed in ("/v1/models", "/v1/adapters", "/version", "/docs", "/openapi.json"):
        assert (await stack.ask(closed)).status == 401


@pytest.mark.parametrize(
    "path",
    [
        "/sleep",
        "/reset_prefix_cache",
        "/collective_rpc",
        "/inference/v1/abort_requests",
        "/update_weights",
        "/v1/load_lora_adapter",
        "/start_profile",
    ],
)
@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_routes_that_steer_the_engine_are_closed(build: Build, path: str, method: str) -> None:
    stack = build()
    reply = await stack.ask(path, {}, method=method)
    assert (reply.status, reply.error["code"]) == (403, "insufficient_permissions")
    assert not stack.vllm.scopes


@pytest.mark.parametrize(("state", "wait"), [("starting", "10"), ("restarting", "5")])
async def test_without_an_engine_it_is_503(build: Build, publish: Publish, state: str, wait: str) -> None:
    publish("sql")
    stack = build()
    stack.host._session, stack.host.state = None, state
    for reply in (await stack.chat("sql"), await stack.chat(None), await stack.ask("/version")):
        assert reply.status == 503
        assert reply.headers["retry-after"] == wait
        assert state in reply.error["message"]
    assert (await stack.ask("/v1/models")).status == 200


async def test_an_engine_that_has_died_unnoticed_is_503(build: Build) -> None:
    stack = build()
    stack.session.alive = False
    assert (await stack.chat(None)).status == 503


async def test_a_restart_during_the_load_answers_from_the_new_engine_or_503(
    build: Build, publish: Publish
) -> None:
    publish("sql")
    publish("email")
    stack = build(places=1, max_wait_s=5)
    holding = stack.call(CHAT, {"model": "email", "messages": SAY, "stream": True})
    await asyncio.wait_for(stack.vllm.first_byte.wait(), 2)
    waiting = stack.call(CHAT, {"model": "sql", "messages": SAY})  # in line for the only place
    await asyncio.sleep(0.02)
    old, new = stack.vllm, fakes.FakeVllm()
    stack.session.alive = False
    fresh = fakes.FakeSession(new)
    await _restart(stack, fresh())
    reply = await waiting.done()
    assert (reply.status, reply.json) == (200, {"model": "sql@1"})
    assert [len(old.bodies), len(new.bodies)] == [1, 1]
    assert list(fresh.held) == ["sql@1"]
    old.go.set()
    await holding.done()  # what it held is gone, and giving it back disturbs nothing
    assert stack.app.residency.resident == ["sql@1"]


async def test_what_was_loaded_into_the_dead_engine_is_not_used(build: Build, publish: Publish) -> None:
    publish("sql")
    stack = build()
    stack.session.load_s = 0.05
    call = stack.call(CHAT, {"model": "sql", "messages": SAY})
    await asyncio.sleep(0.02)
    fresh = fakes.FakeSession(stack.vllm)
    await _restart(stack, fresh())
    reply = await call.done()
    assert (reply.status, reply.headers["retry-after"]) == (503, "5")
    assert not stack.vllm.bodies
    assert (await stack.chat("sql")).status == 200
    assert "sql@1" in fresh.held


async def _restart(stack: Stack, session: Session) -> None:
    stack.app.residency.attach(session)
    stack.host._session = session


async def test_when_full_it_is_429_with_retry_after(build: Build) -> None:
    stack = build(max_running=1, max_waiting=0)
    stream = stack.call(CHAT, {"messages": SAY, "stream": True})
    await asyncio.wait_for(stack.vllm.first_byte.wait(), 2)
    reply = await stack.chat(None)
    assert (reply.status, reply.error["code"]) == (429, "rate_limit_exceeded")
    assert reply.headers["retry-after"] == "1"
    assert (await stack.ask("/readyz")).status == 200
    stack.vllm.go.set()
    await stream.done()
    assert (await stack.chat(None)).status == 200


async def test_a_damaged_file_in_the_registry_is_503_naming_it(build: Build, publish: Publish) -> None:
    manifest = publish("sql")
    stack = build()
    sha = next(f.sha256 for f in manifest.files if f.path.endswith(".safetensors"))
    blob = stack.app.asgi.resolver._registry.store.path(f"blobs/sha256/{sha[:2]}/{sha}")
    assert blob is not None
    blob.chmod(0o600)
    blob.write_bytes(b"x" + blob.read_bytes()[1:])
    reply = await stack.chat("sql")
    assert reply.status == 503
    assert sha in reply.error["message"]
    publish("email")
    assert (await stack.chat("email")).status == 200


async def test_a_websocket_is_turned_away(build: Build) -> None:
    sent: list[Message] = []
    inbox: asyncio.Queue[Message] = asyncio.Queue()
    inbox.put_nowait({"type": "websocket.connect"})

    async def send(message: Message) -> None:
        sent.append(message)

    scope: dict[str, Any] = {
        "type": "websocket",
        "path": "/v1/realtime",
        "raw_path": b"/v1/realtime",
        "query_string": b"",
        "headers": [],
        "scheme": "ws",
        "subprotocols": [],
    }
    stack = build(api_keys=("key",))
    await asyncio.wait_for(stack.app.asgi(scope, inbox.get, send), 2)
    assert [message["type"] for message in sent] == ["websocket.close"]
    assert not stack.vllm.scopes
