from __future__ import annotations

from typing import Any

import pytest
import torch

from adapters.base import BaseModel
from training.generate import greedy
from training.model import open_model

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13], [14]]


@pytest.fixture(scope="module")
def model(base: BaseModel) -> Any:
    return open_model(base.folder, torch.float32)


def test_padding_changes_nothing(model: Any) -> None:
    together = greedy(model, PROMPTS, max_new_tokens=6, end=[], batch_size=3)
    alone = greedy(model, PROMPTS, max_new_tokens=6, end=[], batch_size=1)
    assert [answer.tokens for answer in together] == [answer.tokens for answer in alone]
    for one, other in zip(together, alone, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def test_it_equals_one_whole_pass(model: Any) -> None:
    (answer,) = greedy(model, PROMPTS[:1], max_new_tokens=4, end=[])
    with torch.no_grad():
        logits = model(torch.tensor([PROMPTS[0] + answer.tokens])).logits[0, 2:-1]
    best, chosen = logits.topk(2)
    assert chosen[:, 0].tolist() == answer.tokens
    logprobs = logits.log_softmax(-1).max(-1).values
    assert answer.logprobs == pytest.approx(logprobs.tolist(), abs=1e-5)
    assert answer.gaps == pytest.approx((best[:, 0] - best[:, 1]).tolist(), abs=1e-5)


def test_an_end_token_closes_an_answer(model: Any) -> None:
    free = greedy(model, PROMPTS, max_new_tokens=6, end=[])
    end = free[0].tokens[2]
    done: list[int] = []
    closed = greedy(model, PROMPTS, max_new_tokens=6, end=[end], progress=done.append)
    assert closed[0].tokens == free[0].tokens[: free[0].tokens.index(end) + 1]
    assert sum(done) == 3
