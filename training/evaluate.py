"""Held-out scores: the loss on held-out answers, and metrics on what the model writes itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from training.batching import fixed_batches
from training.config import EvaluationConfig
from training.data import Sample
from training.generate import greedy
from training.loss import mean_loss
from training.metrics import accuracy, exact_match, json_match, json_valid
from training.model import end_tokens

_SLACK = 8  # tokens an answer may be longer than the longest right one, so that running on shows


@dataclass(frozen=True, slots=True)
class Answer:
    prompt: str
    expected: tuple[str, ...]
    text: str

    def record(self) -> dict[str, Any]:
        return {"prompt": self.prompt, "expected": list(self.expected), "answer": self.text}


@dataclass(frozen=True, slots=True)
class Evaluation:
    scores: dict[str, float]
    answers: list[Answer]


def held_out_loss(model: Any, samples: Sequence[Sample], config: EvaluationConfig, pad: int) -> float:
    return mean_loss(model, fixed_batches(samples[: config.loss_limit], config.batch_size, pad))


def evaluate(
    model: Any,
    tokenizer: Any,
    samples: Sequence[Sample],
    config: EvaluationConfig,
    progress: Callable[[int], object] | None = None,
) -> Evaluation:
    """Every configured metric. `progress` is told how many more answers are done."""
    scores: dict[str, float] = {}
    if "loss" in config.metrics:
        scores["loss"] = held_out_loss(model, samples, config, tokenizer.pad_token_id)
    written = [metric for metric in config.metrics if metric != "loss"]
    answers: list[Answer] = []
    if written:
        answers = _write_answers(model, tokenizer, asked(samples, config), config, progress)
        for metric in written:
            found = sum(right(metric, answer, config) for answer in answers)
            scores[metric] = found / len(answers)
    return Evaluation(scores, answers)


def asked(samples: Sequence[Sample], config: EvaluationConfig) -> list[Sample]:
    """The held-out samples that the model answers itself."""
    return [sample for sample in samples if sample.prompt_ids][: config.limit]


def _write_answers(
    model: Any,
    tokenizer: Any,
    samples: Sequence[Sample],
    config: EvaluationConfig,
    progress: Callable[[int], object] | None,
) -> list[Answer]:
    longest = max(sum(sample.supervised) for sample in samples)
    generated = greedy(
        model,
        [sample.prompt_ids for sample in samples],
        max_new_tokens=config.max_new_tokens or longest + _SLACK,
        end=end_tokens(tokenizer, model),
        batch_size=config.batch_size,
        pad=tokenizer.pad_token_id,
        progress=progress,
    )
    return [
        Answer(
            tokenizer.decode(sample.prompt_ids, skip_special_tokens=True),
            sample.answers,
            tokenizer.decode(answer.tokens, skip_special_tokens=True),
        )
        for sample, answer in zip(samples, generated, strict=True)
    ]


def right(metric: str, answer: Answer, config: EvaluationConfig) -> bool:
    if metric == "exact_match":
        return exact_match(answer.text, answer.expected)
    if metric == "json_valid":
        return json_valid(answer.text)
    if metric == "json_match":
        return json_match(answer.text, answer.expected)
    return accuracy(answer.text, answer.expected, config.answer)
