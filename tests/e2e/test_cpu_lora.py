"""Our LoRA kernels for the CPU against B A x, row by row, and the defect of the engine's own that they replace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.cpu_lora import GroupedPunicaWrapper, group_rows, self_test

MAX_ROWS = 24
VOCABULARY = 50


@dataclass(frozen=True)
class Case:
    """One module's slots, and a batch over them. `ranks[slot][part]` is 0 where an adapter leaves a part alone."""

    rows: tuple[int, ...]  # slot of each row, -1: none
    ids: tuple[int | None, ...]  # adapter id in each slot
    ranks: tuple[tuple[int, ...], ...]
    max_rank: int
    width_in: int
    widths: tuple[int, ...]
    scale: float
    seed: int

    @property
    def batch(self) -> tuple[int, ...]:
        """Adapter id of each row, 0: none."""
        return tuple(0 if slot < 0 else self.ids[slot] or 0 for slot in self.rows)

    @property
    def base_rows(self) -> list[int]:
        return [row for row, slot in enumerate(self.rows) if slot < 0]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    slots = draw(st.integers(1, 5))
    parts = draw(st.integers(1, 3))
    max_rank = draw(st.integers(1, 9))
    rank = st.integers(0, max_rank)
    ids = draw(st.permutations(range(11, 11 + slots)))
    return Case(
        rows=tuple(draw(st.lists(st.integers(-1, slots - 1), min_size=1, max_size=MAX_ROWS))),
        ids=tuple(ids),
        ranks=tuple(tuple(draw(rank) for _ in range(parts)) for _ in range(slots)),
        max_rank=max_rank,
        width_in=draw(st.integers(1, 17)),
        widths=tuple(draw(st.integers(1, 13)) for _ in range(parts)),
        scale=draw(st.sampled_from((1.0, 0.5))),
        seed=draw(st.integers(0, 2**16)),
    )


few = settings(max_examples=40, deadline=None, derandomize=True, database=None)


class Module:
    """Stacked weights as the engine keeps them, and how it writes a slot: cleared, then copied in place."""

    def __init__(self, case: Case) -> None:
        self.random = torch.Generator().manual_seed(case.seed)
        self.case = case
        slots = len(case.ids)
        self.a = tuple(torch.zeros(slots, 1, case.max_rank, case.width_in) for _ in case.widths)
        self.b = tuple(torch.zeros(slots, 1, width, case.max_rank) for width in case.widths)
        for slot in range(slots):
            self.put(slot, case.ranks[slot])

    @torch.inference_mode()
    def put(self, slot: int, ranks: Sequence[int]) -> None:
        for a, b, rank in zip(self.a, self.b, ranks, strict=True):
            a[slot] = 0
            b[slot] = 0
            a[slot, 0, :rank].copy_(self.normal(rank, a.shape[-1]), non_blocking=True)
            b[slot, 0, :, :rank].copy_(self.normal(b.shape[-2], rank), non_blocking=True)

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.random)

    def wrapper(self, kind: Callable[..., Any] = GroupedPunicaWrapper) -> Any:
        """The wrapper of `kind`, told of the case's batch."""
        made = kind(MAX_ROWS, max_batches=MAX_ROWS, device="cpu", lora_config=None)
        tell(made, self.case.batch, self.case.ids)
        return made

    def expected(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """y + scale * B A x, one row and one part at a time."""
        y = y.clone()
        for row, slot in enumerate(self.case.rows):
            offset = 0
            for a, b in zip(self.a, self.b, strict=True):
                width = b.shape[-2]
                if slot >= 0:
                    y[row, offset : offset + width] += self.case.scale * (b[slot, 0] @ (a[slot, 0] @ x[row]))
                offset += width
        return y


def tell(wrapper: Any, batch: tuple[int, ...], ids: tuple[int | None, ...]) -> None:
    from vllm.lora.layers import LoRAMapping

    wrapper.update_metadata(LoRAMapping(batch, batch, is_prefill=True), list(ids), len(ids), VOCABULARY)


def same(found: torch.Tensor, expected: torch.Tensor, start: torch.Tensor, case: Case) -> None:
    """Adapter rows within rounding, base rows to the bit."""
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(found[case.base_rows], start[case.base_rows])


@few
@given(case=cases())
def test_rows_get_their_own_adapter_and_base_rows_nothing(case: Case) -> None:
    module = Module(case)
    wrapper = module.wrapper()
    x, start = module.normal(len(case.rows), case.width_in), module.normal(len(case.rows), sum(case.widths))
    y = start.clone()
    wrapper.add_lora_linear(y, x, module.a, module.b, case.scale, case.widths)
    same(y, module.expected(start, x), start, case)


@few
@given(case=cases(), data=st.data())
def test_a_slot_written_again_is_seen_at_once(case: Case, data: st.DataObject) -> None:
    module = Module(case)
    wrapper = module.wrapper()
    x, start = module.normal(len(case.rows), case.width_in), module.normal(len(case.rows), sum(case.widths))
    for _ in range(3):
        y = start.clone()
        wrapper.add_lora_linear(y, x, module.a, module.b, case.scale, case.widths)
        same(y, module.expected(start, x), start, case)
        slot = data.draw(st.integers(0, len(case.ids) - 1), "slot")
        # 0 everywhere is what the engine does when it takes an adapter out.
        module.put(slot, [data.draw(st.integers(0, case.max_rank), "rank") for _ in case.widths])


@few
@given(case=cases())
def test_shrink_and_expand(case: Case) -> None:
    """The two halves that layers sharded over several workers call by themselves."""
    module = Module(case)
    wrapper = module.wrapper()
    rows = len(case.rows)
    x, start = module.normal(rows, case.width_in), module.normal(rows, sum(case.widths) + 3)
    low = module.normal(len(case.widths), rows, case.max_rank)  # whatever an earlier step left
    wrapper.add_shrink(low, x, module.a, case.scale)
    for row, slot in enumerate(case.rows):
        for part, a in enumerate(module.a):
            right = case.scale * (a[slot, 0] @ x[row]) if slot >= 0 else torch.zeros(case.max_rank)
            torch.testing.assert_close(low[part, row], right, atol=1e-4, rtol=1e-4)
    y = start.clone()
    wrapper.add_expand(y, low, module.b, case.widths, offset_start=2)
    expected = start.clone()
    expected[:, 2:-1] = module.expected(start[:, 2:-1], x)
    same(y, expected, start, case)
    set_to = start.clone()
    wrapper.add_expand(set_to, low, module.b, case.widths, offset_start=2, add_inputs=False)
    expected[:, 2:-1] -= start[:, 2:-1]
    expected[case.base_rows] = start[case.base_rows]
    same(set_to, expected, start, case)


@few
@given(case=cases())
def test_embedding_and_logits(case: Case) -> None:
    module = Module(case)
    wrapper = module.wrapper()
    (a, *_), (b, *_) = module.a, module.b
    rows, width = len(case.rows), case.widths[0]
    x = module.normal(rows, case.width_in)
    start = module.normal(rows, width + 2)  # the engine's logits are wider than the adapter's, by padding
    expected, looked_up = start.clone(), module.normal(rows, case.max_rank)
    embedded = start[:, :width].clone()
    for row, slot in enumerate(case.rows):
        if slot >= 0:
            expected[row, :width] += case.scale * (b[slot, 0] @ (a[slot, 0] @ x[row]))
            embedded[row] += b[slot, 0] @ looked_up[row]
    y = start.clone()
    wrapper.add_lora_logits(y, x, a, b, case.scale)
    same(y, expected, start, case)
    y = start[:, :width].clone()
    wrapper.add_lora_embedding(y, looked_up, b)
    same(y, embedded, start[:, :width], case)


def test_each_batch_is_grouped_anew() -> None:
    case = Case((0, -1, 0, 1), (11, 12), ((2,), (2,)), 2, 4, (3,), 1.0, seed=0)
    module = Module(case)
    wrapper = module.wrapper()
    x, zero = module.normal(4, 4), torch.zeros(4, 3)
    tell(wrapper, (0, 0, 0, 0), case.ids)
    y = zero.clone()
    wrapper.add_lora_linear(y, x, module.a, module.b, 1.0, (3,))
    assert torch.equal(y, zero)
    tell(wrapper, case.batch, case.ids)
    wrapper.add_lora_linear(y, x, module.a, module.b, 1.0, (3,))
    same(y, module.expected(zero, x), zero, case)


def test_rows_that_stand_together_are_a_slice() -> None:
    """No copy for them."""
    groups = group_rows(torch.tensor([1, 1, -1, 0, 2, 0]))
    assert [slot for slot, _ in groups] == [0, 1, 2]
    assert isinstance(groups[0][1], torch.Tensor)
    assert groups[0][1].tolist() == [3, 5]
    assert groups[1][1] == slice(0, 2)
    assert groups[2][1] == slice(4, 5)


def test_the_self_test_passes() -> None:
    assert self_test() is None


@pytest.mark.parametrize("path", ["linear", "logits"])
def test_the_engines_own_kernels_change_base_rows(path: str) -> None:
    """Why ours exist. When this fails, vLLM has mended it: then `server.engine.cpu_lora` is only about speed."""
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    case = Case((-1, 0, 1, -1), (11, 12), ((2,), (2,)), 2, 4, (3,), 1.0, seed=0)
    module = Module(case)
    x, start = module.normal(4, 4), module.normal(4, 3)
    changed = {}
    for kind in (PunicaWrapperCPU, GroupedPunicaWrapper):
        wrapper, y = module.wrapper(kind), start.clone()
        if path == "linear":
            wrapper.add_lora_linear(y, x, module.a, module.b, 1.0, (3,))
        else:
            wrapper.add_lora_logits(y, x, module.a[0], module.b[0], 1.0)
        changed[kind.__name__] = not torch.equal(y[case.base_rows], start[case.base_rows])
    assert changed == {"PunicaWrapperCPU": True, "GroupedPunicaWrapper": False}
