"""Usage: tokens and times around `generate`, whatever form the outputs have."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from server import usage
from server.metrics import Metrics


class Kind(Enum):
    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


@dataclass
class Params:
    output_kind: Kind


@dataclass
class Lora:
    lora_name: str


@dataclass
class Choice:
    token_ids: list[int]
    index: int = 0
    finish_reason: str | None = None


@dataclass
class Output:
    outputs: list[Choice]
    finished: bool = False
    prompt_token_ids: list[int] | None = field(default_factory=lambda: [1, 2, 3])


@dataclass
class Engine:
    """Says what it is told to, and whether it was stopped before the end."""

    says: list[Output]
    closed: bool = False
    aborted: bool = False

    async def generate(
        self, prompt: str, sampling_params: Params, request_id: str, *, lora_request: Lora | None = None
    ) -> AsyncGenerator[Output, None]:
        try:
            for output in self.says:
                await asyncio.sleep(0)
                yield output
        except (asyncio.CancelledError, GeneratorExit):
            self.aborted = True
            raise
        finally:
            self.closed = True


class Counted:
    def __init__(self, engine: Engine, *, limit: int = 10) -> None:
        self.collector = CollectorRegistry()
        self.metrics = Metrics(self.collector, limit=limit)
        self.generate: Any = usage.metered(engine.generate, self.metrics, "base")

    def value(self, series: str, **labels: str) -> float:
        return self.collector.get_sample_value(f"onebase_{series}", labels) or 0.0

    def tokens(self, adapter: str) -> tuple[float, float]:
        prompt = self.value("tokens_total", adapter=adapter, kind="prompt")
        return prompt, self.value("tokens_total", adapter=adapter, kind="generation")


def outputs(kind: Kind) -> list[Output]:
    """Five tokens in three steps, as each kind of output tells it."""
    if kind is Kind.DELTA:
        return [Output([Choice([1])]), Output([Choice([2, 3])]), Output([Choice([4, 5], 0, "length")], True)]
    if kind is Kind.CUMULATIVE:
        steps = [Output([Choice([1])]), Output([Choice([1, 2, 3])])]
        return [*steps, Output([Choice([1, 2, 3, 4, 5], 0, "length")], True)]
    return [Output([Choice([1, 2, 3, 4, 5], 0, "length")], True)]


@pytest.mark.parametrize("kind", list(Kind))
async def test_every_kind_of_output_counts_the_same(kind: Kind) -> None:
    engine = Engine(outputs(kind))
    counted = Counted(engine)
    said = [o async for o in counted.generate("p", Params(kind), "id", lora_request=Lora("sql@1"))]
    assert said == engine.says
    assert counted.tokens("sql@1") == (3, 5)
    assert counted.tokens("base") == (0, 0)
    assert counted.value("requests_total", adapter="sql@1", reason="length") == 1


async def test_times_are_taken_where_there_is_a_first_token_to_see() -> None:
    for kind, seen in ((Kind.DELTA, 1), (Kind.CUMULATIVE, 1), (Kind.FINAL_ONLY, 0)):
        counted = Counted(Engine(outputs(kind)))
        async for _ in counted.generate("p", Params(kind), "id"):
            await asyncio.sleep(0.001)
        assert counted.value("ttft_seconds_count", adapter="base") == seen
        assert counted.value("tpot_seconds_count", adapter="base") == seen


async def test_the_first_token_is_counted_from_the_arrival() -> None:
    counted = Counted(Engine(outputs(Kind.DELTA)))
    token = usage.arrival.set(time.monotonic() - 7)
    try:
        async for _ in counted.generate("p", Params(Kind.DELTA), "id"):
            pass
    finally:
        usage.arrival.reset(token)
    assert 7 <= counted.value("ttft_seconds_sum", adapter="base") < 9


async def test_sampling_parameters_may_be_named() -> None:
    counted = Counted(Engine(outputs(Kind.DELTA)))
    async for _ in counted.generate(prompt="p", sampling_params=Params(Kind.DELTA), request_id="id"):
        pass
    assert counted.tokens("base") == (3, 5)


@pytest.mark.parametrize("kind", [Kind.DELTA, Kind.CUMULATIVE])
async def test_several_choices_that_come_apart_are_all_counted(kind: Kind) -> None:
    steps = [
        Output([Choice([1, 2], 0)]),
        Output([Choice([1], 1)]),
        Output([Choice([1, 2, 3], 1, "stop")], True),
    ]
    counted = Counted(Engine(steps))
    async for _ in counted.generate("p", Params(kind), "id"):
        pass
    assert counted.tokens("base") == (3, 6 if kind is Kind.DELTA else 5)


async def test_an_answer_that_is_left_is_aborted_and_counted_as_far_as_it_got() -> None:
    engine = Engine(outputs(Kind.DELTA))
    counted = Counted(engine)
    answer = counted.generate("p", Params(Kind.DELTA), "id")
    await anext(answer)
    await answer.aclose()
    assert engine.aborted
    assert counted.tokens("base") == (3, 1)
    assert counted.value("requests_total", adapter="base", reason="abort") == 1


async def test_a_failure_passes_and_is_counted() -> None:
    async def broken(*args: Any, **kwargs: Any) -> AsyncGenerator[Output, None]:
        yield Output([Choice([1])])
        raise RuntimeError("engine died")

    counted = Counted(Engine([]))
    generate = usage.metered(broken, counted.metrics, "base")
    with pytest.raises(RuntimeError, match="engine died"):
        async for _ in generate("p", Params(Kind.DELTA), "id"):
            pass
    assert counted.value("requests_total", adapter="base", reason="abort") == 1


async def test_the_base_keeps_its_label_whatever_comes_first() -> None:
    counted = Counted(Engine(outputs(Kind.DELTA)), limit=1)
    for lora in (Lora("a@1"), Lora("b@1"), None):
        async for _ in counted.generate("p", Params(Kind.DELTA), "id", lora_request=lora):
            pass
    assert counted.tokens("base") == (3, 5)
    assert counted.tokens("other") == (6, 10)
