"""From what a request names to an exact version, and what that version's serving block changes in the request."""

from __future__ import annotations

from typing import Any

import pytest

from adapters.base import BaseModel
from adapters.manifest import Serving
from adapters.registry import Registry
from server.errors import BadRequest, ModelNotFound, Unservable
from server.resolve import Resolver, Target
from tests.server.conftest import Publish

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture
def resolver(registry: Registry, tiny: BaseModel) -> Resolver:
    return Resolver(registry, tiny, tool_parser="hermes")


def test_every_form_of_reference(resolver: Resolver, publish: Publish) -> None:
    first, second = publish("team/sql"), publish("team/sql", alias="canary")
    for text, ref in (
        ("team/sql", "team/sql@2"),
        ("team/sql@1", "team/sql@1"),
        ("team/sql:canary", "team/sql@2"),
        (f"team/sql@{first.digest}", "team/sql@1"),
        (f"team/sql@{second.digest}", "team/sql@2"),
    ):
        target = resolver.target({"model": text})
        assert target.model == ref
        assert target.manifest is not None
        assert target.manifest.ref == ref


def test_production_wins_over_the_newest_and_moves_at_once(
    resolver: Resolver, registry: Registry, publish: Publish
) -> None:
    publish("sql", alias="production")
    publish("sql")
    assert resolver.named("sql").model == "sql@1"
    registry.set_alias("sql", "production", 2)
    assert resolver.named("sql").model == "sql@2"
    registry.rollback("sql")
    assert resolver.named("sql").model == "sql@1"


@pytest.mark.parametrize("text", ["sql@9", "sql:nothing", "nothing", "nothing@1"])
def test_what_does_not_exist_is_404(resolver: Resolver, publish: Publish, text: str) -> None:
    publish("sql")
    with pytest.raises(ModelNotFound):
        resolver.named(text)


def test_what_is_retired_is_404_and_says_so(resolver: Resolver, registry: Registry, publish: Publish) -> None:
    publish("sql")
    registry.retire("sql", 1, why="leaks")
    with pytest.raises(ModelNotFound, match="retired"):
        resolver.named("sql@1")


def test_a_misspelt_base_is_named(resolver: Resolver) -> None:
    with pytest.raises(ModelNotFound, match="`tiny-base`"):
        resolver.named("tiny-bass")


def test_nothing_like_it_points_to_the_list(resolver: Resolver) -> None:
    with pytest.raises(ModelNotFound, match="GET /v1/models"):
        resolver.named("zzz")


def test_an_adapter_of_another_base_is_422_naming_both(
    resolver: Resolver, publish: Publish, foreign: BaseModel
) -> None:
    publish("theirs", base=foreign)
    with pytest.raises(Unservable) as refused:
        resolver.named("theirs")
    assert foreign.name in refused.value.message
    assert "tiny-base" in refused.value.message


def prepared(resolver: Resolver, target: Target, path: str = CHAT, **body: Any) -> dict[str, Any]:
    if path != "/v1/completions":
        body = {"messages": MESSAGES} | body
    return resolver.prepare({"model": "x", **body}, target, path)


def test_the_serving_block_fills_what_the_client_left_open(resolver: Resolver, publish: Publish) -> None:
    serving = Serving(
        chat_template="T", stop=("END",), stop_token_ids=(2,), generation={"temperature": 0.0, "top_p": 0.5}
    )
    publish("sql", serving=serving)
    target = resolver.named("sql")
    filled = {"chat_template": "T", "stop": ["END"], "stop_token_ids": [2], "temperature": 0.0, "top_p": 0.5}
    assert prepared(resolver, target) == {"model": "sql@1", "messages": MESSAGES} | filled
    # SDKs send null for what is not given.
    assert prepared(resolver, target, stop=None, temperature=None, chat_template=None) == prepared(
        resolver, target
    )
    theirs: dict[str, Any] = {"stop": [], "stop_token_ids": [7], "temperature": 1, "top_p": 1}
    assert prepared(resolver, target, **theirs).items() >= theirs.items()


def test_where_it_goes_by_route(resolver: Resolver, publish: Publish) -> None:
    publish("sql", serving=Serving(stop=("END",), generation={"temperature": 0.0}))
    target = resolver.named("sql")
    assert prepared(resolver, target, "/v1/completions", prompt="p")["stop"] == ["END"]
    anthropic = prepared(resolver, target, "/v1/messages")
    assert anthropic["stop_sequences"] == ["END"]
    assert "stop" not in anthropic
    tokens = prepared(resolver, target, "/tokenize")
    assert "stop" not in tokens
    assert resolver.prepare({"model": "sql", "input": "i"}, target, "/v1/responses")["stop"] == ["END"]


def test_a_template_of_its_own_is_refused_where_it_cannot_be_applied(
    resolver: Resolver, publish: Publish
) -> None:
    publish("sql", serving=Serving(chat_template="T"))
    target = resolver.named("sql")
    for path in ("/v1/messages", "/v1/messages/count_tokens", "/v1/responses"):
        with pytest.raises(Unservable, match="chat template"):
            prepared(resolver, target, path)
    assert prepared(resolver, target, "/tokenize")["chat_template"] == "T"
    assert "chat_template" not in prepared(resolver, target, "/v1/completions", prompt="p")


def test_the_tool_parser_must_be_the_engines(resolver: Resolver, publish: Publish) -> None:
    publish("sql", serving=Serving(tool_parser="mistral"))
    publish("home", serving=Serving(tool_parser="hermes"))
    tools = [{"type": "function", "function": {"name": "f"}}]
    with pytest.raises(Unservable, match="--tool-call-parser mistral"):
        prepared(resolver, resolver.named("sql"), tools=tools)
    assert prepared(resolver, resolver.named("sql"))["model"] == "sql@1"
    assert prepared(resolver, resolver.named("home"), tools=tools)["tools"] == tools


@pytest.mark.parametrize(
    "sent", [{"chat_template": "{{ 1 }}"}, {"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}]
)
def test_a_clients_chat_template_is_refused_unless_trusted(
    resolver: Resolver, registry: Registry, tiny: BaseModel, publish: Publish, sent: dict[str, Any]
) -> None:
    publish("sql", serving=Serving(chat_template="T"))
    for target in (resolver.target({}), resolver.named("sql")):
        with pytest.raises(BadRequest) as refused:
            prepared(resolver, target, **sent)
        assert refused.value.param == "chat_template"
    trusting = Resolver(registry, tiny, tool_parser=None, trust_templates=True)
    assert prepared(trusting, trusting.target({}), **sent).items() >= sent.items()


def test_other_template_options_are_the_clients(resolver: Resolver) -> None:
    for options in ({"enable_thinking": False}, None, "nonsense"):
        assert prepared(resolver, resolver.target({}), chat_template_kwargs=options)["model"] == "tiny-base"


def test_a_request_is_not_changed_in_place(resolver: Resolver, publish: Publish) -> None:
    publish("sql", serving=Serving(stop=("END",)))
    body = {"model": "sql", "messages": MESSAGES, "adapter_id": "sql"}
    before = dict(body)
    resolver.prepare(body, resolver.target(body), CHAT)
    assert body == before


def test_a_rank_over_the_servers_is_422_naming_the_flag(
    registry: Registry, tiny: BaseModel, publish: Publish
) -> None:
    publish("wide")
    rank = registry.resolve("wide").lora.rank  # type: ignore[union-attr]
    small = Resolver(registry, tiny, tool_parser=None, max_rank=rank - 1)
    with pytest.raises(Unservable, match=rf"--max-lora-rank {rank}"):
        small.named("wide")
    assert Resolver(registry, tiny, tool_parser=None, max_rank=rank).named("wide").model == "wide@1"
