from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from adapters.base import BaseModel
from training.batching import collate
from training.data import Sample
from training.errors import Place
from training.loss import mean_loss, summed_loss
from training.model import open_model


@pytest.fixture(scope="module")
def model(base: BaseModel) -> Any:
    return open_model(base.folder, torch.float32)


def samples() -> list[Sample]:
    chance = torch.Generator().manual_seed(0)
    made = []
    for length, prompt in ((9, 4), (14, 6), (11, 10)):
        ids = torch.randint(0, 250, (length,), generator=chance).tolist()
        made.append(
            Sample(ids, [False] * prompt + [True] * (length - prompt), ids[:prompt], ("x",), Place("test"))
        )
    return made


def plain_loss(model: Any, rows: list[Sample]) -> torch.Tensor:
    """The textbook way: one row at a time, all logits, labels shifted by one."""
    total = torch.zeros(())
    for row in rows:
        ids = torch.tensor([row.ids])
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, :-1]
        labels = torch.tensor([t if on else -100 for t, on in zip(row.ids, row.supervised, strict=True)])[1:]
        total = total + functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
    return total


def test_selective_logits_and_padding_change_nothing(model: Any) -> None:
    rows = samples()
    ours = summed_loss(model, collate(rows, pad=0))
    plain = plain_loss(model, rows)
    assert torch.allclose(ours, plain, rtol=1e-6)
    ours_gradients = torch.autograd.grad(ours, list(model.parameters()))
    plain_gradients = torch.autograd.grad(plain, list(model.parameters()))
    for one, other in zip(ours_gradients, plain_gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_an_architecture_without_selective_logits(model: Any) -> None:
    class Whole:
        def __call__(self, input_ids: torch.Tensor, **_: Any) -> Any:
            return model(input_ids=input_ids)

    batch = collate(samples(), pad=0)
    assert torch.allclose(summed_loss(Whole(), batch), summed_loss(model, batch), rtol=1e-6)


def test_the_mean_counts_tokens_not_batches(model: Any) -> None:
    rows = samples()
    together = mean_loss(model, [collate(rows, pad=0)])
    apart = mean_loss(model, [collate([row], pad=0) for row in rows])
    assert together == pytest.approx(apart, rel=1e-6)
    assert model.training is False
