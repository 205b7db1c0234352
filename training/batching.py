"""Samples to batches: rows of like length together, and the positions at which the output head has to run."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Dataset, Sampler

from training.data import Sample

_IGNORED = -100
_BUCKETS = 16  # batches whose samples are sorted together: more saves padding, fewer keeps the order random


class Samples(Dataset[Sample]):
    """A list of samples, as torch's loader wants it."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


class LengthBuckets(Sampler[int]):
    """An order in which neighbours are of like length. It depends on seed and epoch alone, so a resumed run
    has it too.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        chance = random.Random(f"{self.seed}/{self.epoch}")
        order = list(range(len(self.lengths)))
        chance.shuffle(order)
        size, window = self.batch_size, self.batch_size * _BUCKETS
        batches: list[list[int]] = []
        for start in range(0, len(order), window):
            together = sorted(order[start : start + window], key=lambda index: self.lengths[index])
            batches += [together[at : at + size] for at in range(0, len(together), size)]
        short = batches.pop() if len(batches[-1]) < size else []
        chance.shuffle(batches)
        # The short batch comes last, since the loader cuts this order into pieces of `size` again.
        return iter([index for batch in [*batches, short] for index in batch])


def collate(samples: Sequence[Sample], pad: int) -> dict[str, torch.Tensor]:
    """`input_ids` [rows, length], `keep` [k] and `targets` [rows, k].

    Padding stands on the right, where a causal model cannot see it: no mask is needed, and attention takes
    its fast path. `keep` holds every position that predicts a supervised token in some row; `targets` is -100
    elsewhere.
    """
    length = max(len(sample.ids) for sample in samples)
    ids = torch.full((len(samples), length), pad, dtype=torch.long)
    targets = torch.full((len(samples), length), _IGNORED, dtype=torch.long)
    for row, sample in enumerate(samples):
        tokens = torch.tensor(sample.ids, dtype=torch.long)
        ids[row, : len(tokens)] = tokens
        wanted = torch.tensor(sample.supervised, dtype=torch.bool)
        # position i predicts token i + 1
        targets[row, : len(tokens) - 1] = torch.where(wanted[1:], tokens[1:], _IGNORED)
    keep = (targets != _IGNORED).any(dim=0).nonzero().flatten()
    return {"input_ids": ids, "keep": keep, "targets": targets[:, keep]}


def supervised_tokens(batch: dict[str, torch.Tensor]) -> int:
    return int((batch["targets"] != _IGNORED).sum())


def fixed_batches(samples: Sequence[Sample], batch_size: int, pad: int) -> Iterator[dict[str, torch.Tensor]]:
    """Every sample once, by length: for evaluation, where order does not matter."""
    order = sorted(samples, key=lambda sample: len(sample.ids))
    for start in range(0, len(order), batch_size):
        yield collate(order[start : start + batch_size], pad)
