"""Cross entropy on supervised tokens, with the output head run only where one of them is predicted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_IGNORED = -100


def summed_loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The sum over the batch's supervised tokens; exact, since the head treats positions one by one."""
    logits = model(input_ids=batch["input_ids"], logits_to_keep=batch["keep"], use_cache=False).logits
    targets = batch["targets"]
    if logits.shape[1] != targets.shape[1]:  # an architecture that takes no index tensor: pick afterwards
        logits = logits[:, batch["keep"]]
    wanted = targets != _IGNORED
    return functional.cross_entropy(logits[wanted].float(), targets[wanted], reduction="sum")


@torch.no_grad()
def mean_loss(model: Any, batches: Iterable[dict[str, Tensor]]) -> float:
    """The mean over the supervised tokens of all batches: each counts alike, whatever batch it is in."""
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    try:
        for batch in batches:
            batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
            total += float(summed_loss(model, batch))
            count += int((batch["targets"] != _IGNORED).sum())
    finally:
        model.train(was_training)
    return total / count
