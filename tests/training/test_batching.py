from __future__ import annotations

import torch

from training.batching import LengthBuckets, collate, fixed_batches, supervised_tokens
from training.data import Sample
from training.errors import Place


def sample(ids: list[int], supervised: list[bool]) -> Sample:
    return Sample(ids, supervised, ids[:1], ("x",), Place("test"))


def test_every_index_once_and_the_same_for_a_seed_and_epoch() -> None:
    lengths = [(7 * i) % 23 for i in range(50)]
    sampler = LengthBuckets(lengths, 8, seed=1)
    first = list(sampler)
    assert sorted(first) == list(range(50))
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(LengthBuckets(lengths, 8, seed=2)) != first


def test_batches_hold_samples_of_like_length() -> None:
    lengths = [(7 * i) % 100 for i in range(128)]
    order = list(LengthBuckets(lengths, 8, seed=0))
    batches = [order[at : at + 8] for at in range(0, 128, 8)]
    spreads = [max(lengths[i] for i in b) - min(lengths[i] for i in b) for b in batches]
    assert max(spreads) <= 13


def test_the_short_batch_comes_last() -> None:
    lengths = [i % 5 for i in range(19)]
    order = list(LengthBuckets(lengths, 4, seed=0))
    assert len(order) == 19
    for at in range(0, 16, 4):  # a batch torn apart would mix lengths
        chosen = [lengths[i] for i in order[at : at + 4]]
        assert max(chosen) - min(chosen) <= 2
    assert len(LengthBuckets(lengths, 4, seed=0)) == 19


def test_collate_keeps_only_positions_that_predict_something() -> None:
    one = sample([5, 6, 7, 8], [False, False, True, True])
    two = sample([5, 9, 4], [False, True, True])
    batch = collate([one, two], pad=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8], [5, 9, 4, 0]]
    assert batch["keep"].tolist() == [0, 1, 2]
    assert batch["targets"].tolist() == [[-100, 7, 8], [9, 4, -100]]
    assert supervised_tokens(batch) == 4


def test_the_first_token_cannot_be_predicted() -> None:
    batch = collate([sample([5, 6], [True, True])], pad=0)
    assert batch["targets"].tolist() == [[6]]


def test_fixed_batches_cover_all() -> None:
    samples = [sample([1] * (1 + i % 3) + [2], [False] * (1 + i % 3) + [True]) for i in range(7)]
    batches = list(fixed_batches(samples, 3, pad=0))
    assert sum(len(batch["input_ids"]) for batch in batches) == 7
    assert all(batch["input_ids"].dtype == torch.long for batch in batches)
