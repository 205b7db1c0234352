"""What the OpenAI SDK offers, with an adapter: chat, streams, tools, JSON schema, log-probabilities, responses."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.conftest import Server

SAY: Any = [{"role": "user", "content": "Say something short about the sea."}]
MODEL = "made-1"


@pytest.fixture
def sdk(roomy: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{roomy.url}/v1", api_key="unused", max_retries=0, timeout=120)


def test_chat_and_its_stream_say_the_same(sdk: openai.OpenAI) -> None:
    options: Any = {"model": MODEL, "messages": SAY, "max_tokens": 12, "temperature": 0}
    whole = sdk.chat.completions.create(**options)
    assert whole.model == f"{MODEL}@1"
    assert whole.usage.completion_tokens <= 12
    chunks = list(sdk.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert len(chunks) > 3
    assert {chunk.model for chunk in chunks} == {f"{MODEL}@1"}
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_log_probabilities(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(
        model=MODEL,
        messages=SAY,
        max_tokens=3,
        temperature=0,
        logprobs=True,
        top_logprobs=2,
    )
    content = answer.choices[0].logprobs.content  # type: ignore[union-attr]
    assert content
    for position in content:
        assert len(position.top_logprobs) == 2
        assert position.logprob == pytest.approx(position.top_logprobs[0].logprob)
        assert position.logprob <= 0


def test_json_schema_is_kept(sdk: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"room": {"enum": ["kitchen", "hall"]}, "on": {"type": "boolean"}},
        "required": ["room", "on"],
        "additionalProperties": False,
    }
    answer = sdk.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Switch on the light in the kitchen."}],
        max_tokens=60,
        temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "light", "schema": schema}},
    )
    found = json.loads(answer.choices[0].message.content or "")
    assert found["room"] in ("kitchen", "hall")
    assert isinstance(found["on"], bool)
    assert answer.model == f"{MODEL}@1"


@pytest.mark.parametrize("choice", [{"type": "function", "function": {"name": "weather"}}, "required"])
def test_a_forced_tool_is_called(sdk: openai.OpenAI, choice: Any) -> None:
    """`strict` makes the engine hold the arguments to the schema."""
    parameters = {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    }
    tool = {
        "type": "function",
        "function": {"name": "weather", "parameters": parameters, "strict": True},
    }
    answer = sdk.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "What is the weather in Rome?"}],
        tools=[tool],  # type: ignore[list-item]
        tool_choice=choice,
        max_tokens=60,
        temperature=0,
    )
    calls = answer.choices[0].message.tool_calls
    assert calls
    assert calls[0].function.name == "weather"  # type: ignore[union-attr]
    assert json.loads(calls[0].function.arguments)["city"] in ("Paris", "Rome")  # type: ignore[union-attr]


def test_completions_stream(sdk: openai.OpenAI) -> None:
    options: Any = {"model": MODEL, "prompt": "The sea is", "max_tokens": 8, "temperature": 0}
    whole = sdk.completions.create(**options)
    streamed = sdk.completions.create(**options, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == whole.choices[0].text


def test_responses(sdk: openai.OpenAI) -> None:
    answer = sdk.responses.create(model=MODEL, input="Say hello.", max_output_tokens=8, temperature=0)
    assert answer.model == f"{MODEL}@1"
    assert answer.output_text


def test_tokenize_and_messages(roomy: Server) -> None:
    tokens = httpx.post(
        f"{roomy.url}/tokenize", json={"model": MODEL, "prompt": "hello sea"}, timeout=30
    ).json()
    assert tokens["count"] == len(tokens["tokens"]) > 0
    body = {"model": MODEL, "max_tokens": 6, "messages": [{"role": "user", "content": "Hi"}]}
    message = httpx.post(f"{roomy.url}/v1/messages", json=body, timeout=60)
    assert message.status_code == 200
    assert message.json()["model"] == f"{MODEL}@1"
    missing = httpx.post(f"{roomy.url}/v1/messages", json={**body, "model": "nobody"}, timeout=30)
    assert missing.status_code == 404
    assert missing.json()["error"]["type"] == "not_found_error"


def test_errors_are_the_sdks_own(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        sdk.chat.completions.create(model="nobody-at-all", messages=SAY)
    with pytest.raises(openai.BadRequestError, match=r"context length|max_model_len|maximum"):
        sdk.completions.create(model=MODEL, prompt="sea " * 2000, max_tokens=4)
