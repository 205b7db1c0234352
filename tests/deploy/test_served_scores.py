"""Scores as served: the right prompts go to each model, and the metrics are training's own."""

from __future__ import annotations

import json

import httpx
import pytest

from deploy.benchmark.served_scores import measure
from training.config import TrainConfig
from training.data import Sample
from training.errors import Place


def sample(prompt: list[int], answer: str) -> Sample:
    return Sample([*prompt, 9], [False] * len(prompt) + [True], prompt, (answer,), Place("e.jsonl", 1))


async def test_each_model_is_asked_each_prompt_and_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    says = {("base", 1): "no", ("base", 2): "two", ("tuned", 1): "one", ("tuned", 2): " two\n"}

    def answer(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        text = says[body["model"], body["prompt"][0]]
        return httpx.Response(200, json={"choices": [{"text": text}]})

    real = httpx.AsyncClient

    def fake(**options: object) -> httpx.AsyncClient:
        return real(transport=httpx.MockTransport(answer))

    monkeypatch.setattr(httpx, "AsyncClient", fake)
    config = TrainConfig.model_validate(
        {
            "model": "smollm2-135m",
            "name": "x",
            "data": {"format": "chat", "train": {"file": "t.jsonl"}, "eval": {"file": "e.jsonl"}},
            "evaluation": {"metrics": ["loss", "exact_match"]},
        }
    )
    samples = [sample([1], "one"), sample([2], "two")]
    scores = await measure("http://server", ["base", "tuned"], config, samples, 4)
    assert scores == {"base": {"exact_match": 0.5}, "tuned": {"exact_match": 1.0}}
