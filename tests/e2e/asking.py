"""Ask a server by the OpenAI SDK and hold the answer against the reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import openai

from tests.e2e.conftest import TOKENS, Reference
from training.agreement import MARGIN, TOLERANCE, Verdict, judge


@dataclass(frozen=True)
class Asked:
    model: str
    tokens: list[int]
    logprobs: list[float]


def client(url: str) -> openai.AsyncOpenAI:
    """No retries: a request that fails is to be seen."""
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0, timeout=120)


async def ask(
    sdk: openai.AsyncOpenAI, model: str, prompt: list[int], *, tokens: int = TOKENS, **extra: Any
) -> Asked:
    """Greedy completion of token ids, with the ids and log-probabilities of what came."""
    answer = await sdk.completions.create(
        model=model,
        prompt=prompt,
        max_tokens=tokens,
        temperature=0,
        logprobs=1,
        extra_body={"return_token_ids": True, **extra},
    )
    choice = answer.choices[0]
    found = choice.model_extra or {}
    logprobs = choice.logprobs.token_logprobs if choice.logprobs and choice.logprobs.token_logprobs else []
    return Asked(answer.model, list(found["token_ids"]), [float(p or 0.0) for p in logprobs])


def verdict(
    reference: Reference,
    name: str,
    prompt: int,
    asked: Asked,
    *,
    margin: float = MARGIN,
    tolerance: float = TOLERANCE,
) -> Verdict:
    """Equality as docs/architecture.md defines it, against transformers + peft."""
    expected = reference.answers[name][prompt]
    shortened = type(expected)(
        expected.tokens[: len(asked.tokens)],
        expected.logprobs[: len(asked.tokens)],
        expected.gaps[: len(asked.tokens)],
    )
    return judge(
        shortened, asked.tokens, asked.logprobs, end=reference.end, margin=margin, tolerance=tolerance
    )
