"""Our own routes: probes, metrics, the list of models, reading the registry."""

from __future__ import annotations

from typing import Any

import pytest

from adapters.base import BaseModel
from adapters.registry import Registry
from server.engine.host import EngineHost
from server.routes import owns
from tests.server.conftest import Build, Publish, Stack


async def cards(stack: Stack) -> dict[str, dict[str, Any]]:
    listed = (await stack.ask("/v1/models")).json
    assert listed["object"] == "list"
    return {card["id"]: card for card in listed["data"]}


async def test_models_are_the_base_and_one_card_a_name(build: Build, publish: Publish) -> None:
    publish("sql", alias="production")
    publish("sql", alias="canary")
    publish("email")
    stack = build()
    await stack.chat("sql")
    found = await cards(stack)
    assert list(found) == ["tiny-base", "org/Tiny-Base", "email", "sql"]
    assert found["tiny-base"]["parent"] is None
    assert found["tiny-base"]["max_model_len"] == 512
    sql = found["sql"]
    assert (sql["object"], sql["root"], sql["parent"]) == ("model", "sql@1", "tiny-base")
    assert sql["onebase"] == {
        "production": "sql@1",
        "proof": "static",
        "aliases": {"canary": [2], "production": [1]},
        "versions": [
            {"id": "sql@1", "proof": "static", "loaded": True},
            {"id": "sql@2", "proof": "static", "loaded": False},
        ],
    }
    assert isinstance(sql["created"], int)
    assert found["email"]["root"] == "email@1"


async def test_what_is_published_later_is_listed_and_callable_at_once(build: Build, publish: Publish) -> None:
    stack = build()
    assert "sql" not in await cards(stack)
    publish("sql")
    assert "sql" in await cards(stack)
    assert (await stack.chat("sql")).status == 200


async def test_retired_and_foreign_are_not_listed(
    build: Build, publish: Publish, registry: Registry, foreign: BaseModel
) -> None:
    publish("old")
    publish("sql")
    publish("sql")
    publish("theirs", base=foreign)
    registry.retire("old", 1)
    registry.retire("sql", 1)
    stack = build()
    found = await cards(stack)
    assert list(found) == ["tiny-base", "org/Tiny-Base", "sql"]
    assert [v["id"] for v in found["sql"]["onebase"]["versions"]] == ["sql@2"]
    assert (await stack.ask("/v1/models/theirs")).status == 422
    assert (await stack.ask("/v1/models/old")).status == 404


async def test_one_model_by_any_reference(build: Build, publish: Publish) -> None:
    manifest = publish("team/sql", alias="canary")
    stack = build()
    for text in ("team/sql", "team/sql@1", "team/sql:canary", f"team/sql@{manifest.digest}"):
        card = (await stack.ask(f"/v1/models/{text}")).json
        assert (card["id"], card["root"]) == (text, "team/sql@1")
    assert (await stack.ask("/v1/models/org/Tiny-Base")).json["parent"] is None
    missing = await stack.ask("/v1/models/team/sq")
    assert (missing.status, missing.error["code"]) == (404, "model_not_found")
    assert "`team/sql`" in missing.error["message"]
    assert missing.error["request_id"] == missing.headers["x-request-id"]
    assert (await stack.ask("/v1/models/")).status == 400


async def test_readiness(build: Build) -> None:
    stack = build()
    for path in ("/readyz", "/health", "/ping"):
        ready = await stack.ask(path)
        assert (ready.status, ready.json["status"]) == (200, "ready")
    stack.host._session, stack.host.state, stack.host.problem = None, "restarting", "out of memory"
    down = await stack.ask("/readyz")
    assert (down.status, down.headers["retry-after"]) == (503, "5")
    assert down.json == {"status": "restarting", "problem": "out of memory"}
    alive = await stack.ask("/livez")
    assert (alive.status, alive.json["engine"]) == (200, "restarting")


async def test_an_engine_that_has_just_died_is_not_ready(build: Build) -> None:
    stack = build()
    stack.session.alive = False
    assert (await stack.ask("/readyz")).status == 503


async def test_draining_is_not_ready(build: Build) -> None:
    stack = build()
    stack.app.admission.closed = True
    down = await stack.ask("/readyz")
    assert (down.status, down.json["status"]) == (503, "draining")
    assert (await stack.ask("/livez")).status == 200


async def test_metrics(build: Build, publish: Publish) -> None:
    publish("sql")
    stack = build()
    await stack.chat("sql")
    await stack.chat("nothing")
    reply = await stack.ask("/metrics")
    assert reply.headers["content-type"].startswith("text/plain")
    text = reply.body.decode()
    for line in (
        'onebase_adapter_loads_total{adapter="sql@1"} 1.0',
        'onebase_refusals_total{code="model_not_found"} 1.0',
        "onebase_adapters_resident 1.0",
        "onebase_requests_running 0.0",
        "onebase_requests_waiting 0.0",
        "onebase_engine_restarts 0.0",
    ):
        assert line in text


async def test_the_registry_can_be_read(build: Build, publish: Publish, registry: Registry) -> None:
    publish("team/sql", alias="production", why="first")
    publish("team/sql")
    registry.set_alias("team/sql", "production", 2, by="me", why="better")
    stack = build()
    listed = await stack.ask("/v1/adapters")
    assert listed.json == {"object": "list", "data": [{"name": "team/sql", "versions": 2}]}
    versions = (await stack.ask("/v1/adapters/team/sql/versions")).json["data"]
    assert [v["id"] for v in versions] == ["team/sql@1", "team/sql@2"]
    history = (await stack.ask("/v1/adapters/team/sql/aliases")).json["data"]["production"]
    assert {(e["seq"], e["targets"][0]["version"], e["why"]) for e in history} == {
        (1, 1, "first"),
        (2, 2, "better"),
    }
    manifest = (await stack.ask("/v1/adapters/team/sql@1")).json
    assert (manifest["id"], manifest["why"], manifest["lora"]["rank"]) == ("team/sql@1", "first", 4)
    for path in ("nothing", "nothing/versions", "nothing/aliases", "team/sql@9"):
        missing = await stack.ask(f"/v1/adapters/{path}")
        assert (missing.status, missing.error["code"]) == (404, "model_not_found"), path


async def test_the_wrong_method_is_405_in_the_usual_shape(build: Build) -> None:
    reply = await build().ask("/v1/models", {}, method="POST")
    assert (reply.status, reply.error["code"]) == (405, "method_not_allowed")
    assert reply.headers["allow"] == "GET"


async def test_an_unforeseen_error_is_json_with_the_id(
    build: Build, registry: Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> list[str]:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(registry, "names", broken)
    reply = await build().ask("/v1/models", headers={"x-request-id": "mine"})
    assert reply.status == 500
    assert reply.error["request_id"] == "mine"
    assert "secret" not in reply.body.decode()
    assert "secret detail" in caplog.text


async def test_everything_answers_while_the_engine_starts(build: Build, publish: Publish) -> None:
    publish("sql")
    stack = build()
    stack.host._session, stack.host.max_model_len, stack.host.state = None, None, "starting"
    for path in ("/livez", "/metrics", "/v1/models", "/v1/models/sql", "/v1/adapters", "/openapi.json"):
        assert (await stack.ask(path)).status == 200, path


@pytest.mark.parametrize(
    ("path", "ours"),
    [
        ("/v1/models", True),
        ("/v1/models/a/b", True),
        ("/v1/adapters/x/versions", True),
        ("/v1/modelsx", False),
        ("/v1/chat/completions", False),
        ("/healthz", False),
        ("/", False),
    ],
)
def test_which_paths_are_ours(path: str, ours: bool) -> None:
    assert owns(path) is ours


def test_a_host_that_was_never_run_is_not_ready() -> None:
    async def on_start(_: object) -> None: ...

    host = EngineHost(lambda: None, on_start)  # type: ignore[arg-type,return-value]
    assert not host.ready
    assert host.state == "starting"
