from __future__ import annotations

from typing import Any

import pytest
import torch

from adapters.base import BaseModel
from training.config import EvaluationConfig
from training.data import Sample
from training.errors import Place
from training.evaluate import Answer, asked, evaluate
from training.model import open_model


def sample(tokenizer: Any, prompt: str, answer: str) -> Sample:
    prompt_ids, answer_ids = tokenizer.encode(prompt), tokenizer.encode(answer)
    supervised = [False] * len(prompt_ids) + [True] * len(answer_ids)
    return Sample(prompt_ids + answer_ids, supervised, prompt_ids, (answer,), Place("test"))


def test_scores_of_every_metric(base: BaseModel, tokenizer: Any) -> None:
    model = open_model(base.folder, torch.float32)
    samples = [sample(tokenizer, f"q{i}", "ab") for i in range(5)]
    config = EvaluationConfig(
        metrics=["loss", "exact_match", "accuracy", "json_valid", "json_match"], limit=3, max_new_tokens=4
    )
    ticks: list[int] = []
    done = evaluate(model, tokenizer, samples, config, ticks.append)
    assert set(done.scores) == set(config.metrics)
    assert done.scores["loss"] == pytest.approx(5.6, abs=0.5)  # as good as guessing among 259 tokens
    assert len(done.answers) == sum(ticks) == 3


def test_the_loss_alone_generates_nothing(base: BaseModel, tokenizer: Any) -> None:
    model = open_model(base.folder, torch.float32)
    done = evaluate(model, tokenizer, [sample(tokenizer, "q", "a")], EvaluationConfig(metrics=["loss"]))
    assert list(done.scores) == ["loss"]
    assert done.answers == []


def test_turns_without_a_prompt_of_their_own_are_not_asked(tokenizer: Any) -> None:
    one = sample(tokenizer, "q", "a")
    earlier = Sample(one.ids, one.supervised, [], one.answers, one.place)
    assert asked([earlier, one], EvaluationConfig()) == [one]


def test_an_answer_can_be_kept(tokenizer: Any) -> None:
    assert Answer("q", ("a",), "b").record() == {"prompt": "q", "expected": ["a"], "answer": "b"}
