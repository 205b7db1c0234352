"""Greedy generation with a cache: one loop for held-out answers and for the reference that the server is
judged by.

Knows models and token ids, no tokenizer. Prompts of a batch are padded on the left and masked.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(slots=True)
class Generated:
    """One answer. For each token: its log-probability, and the lead of the best logit over the second."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)


@torch.no_grad()
def greedy(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    end: Collection[int],
    batch_size: int = 16,
    pad: int = 0,
    progress: Callable[[int], object] | None = None,
) -> list[Generated]:
    """The answers in the order of the prompts; an end token is the last of an answer's tokens."""
    was_training = model.training
    model.eval()
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers: list[Generated] = [Generated() for _ in prompts]
    try:
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = [prompts[index] for index in chosen]
            for index, answer in zip(chosen, _batch(model, batch, max_new_tokens, end, pad), strict=True):
                answers[index] = answer
            if progress:
                progress(len(chosen))
    finally:
        model.train(was_training)
    return answers


def _batch(
    model: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int, end: Collection[int], pad: int
) -> list[Generated]:
    width = max(len(prompt) for prompt in prompts)
    device = model.device
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    answers = [Generated() for _ in prompts]
    open_rows = set(range(len(prompts)))
    cache = None
    for _ in range(max_new_tokens):
        out = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = out.past_key_values
        logits = out.logits[:, -1].float()
        best, chosen = logits.topk(2, dim=-1)
        logprobs = best[:, 0] - logits.logsumexp(dim=-1)
        for row in list(open_rows):
            token = int(chosen[row, 0])
            answers[row].tokens.append(token)
            answers[row].logprobs.append(float(logprobs[row]))
            answers[row].gaps.append(float(best[row, 0] - best[row, 1]))
            if token in end:
                open_rows.discard(row)
        if not open_rows:
            break
        ids = chosen[:, :1]
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
        positions = positions[:, -1:] + 1
    return answers
