"""LoRA on CPU, grouped by adapter: right for every row, and one matrix product an adapter instead of one a token.

vLLM 0.32's own CPU path gathers each token's adapter weights by index and uses -1 for "no adapter", which on a
tensor means the last slot: base rows that share a batch with adapter rows get some adapter's update (vLLM issues
48421 and 49656). Here the rows of a batch are grouped by slot once a step; rows without an adapter belong to no
group and are never touched; a module that an adapter leaves alone costs nothing; ranks are cut to the adapter's.

Imported inside the engine's worker only (it needs torch and vLLM); `plugin.py` puts it in place.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

# Rows of one group: a slice when they are contiguous (no copy), else their indices.
Rows = slice | torch.Tensor
Groups = list[tuple[int, Rows]]


def group_rows(indices: torch.Tensor) -> Groups:
    """`indices` [tokens] of slots, -1 for none -> (slot, rows) for each slot that occurs, in slot order."""
    groups: Groups = []
    for slot in torch.unique(indices).tolist():
        if slot < 0:
            continue
        rows = (indices == slot).nonzero().flatten()
        first, last = int(rows[0]), int(rows[-1])
        groups.append((slot, slice(first, last + 1) if last - first + 1 == len(rows) else rows))
    return groups


class GroupedPunicaWrapper(PunicaWrapperCPU):
    """Drop-in for PunicaWrapperCPU; shapes as there: A [slots, 1, rank, in], B [slots, 1, out, rank]."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._token_groups: Groups = []
        self._sampler_groups: Groups = []
        self._ranks: dict[tuple[int, int], tuple[int, int]] = {}

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        super().update_metadata(*args, **kwargs)
        self._token_groups = group_rows(self.token_lora_indices)
        self._sampler_groups = group_rows(self.sampler_indices)

    def _rank(self, weights: torch.Tensor, slot: int) -> int:
        """Rank that `slot` really uses in A `weights`; 0 when the adapter leaves the module alone.

        Kept until the tensor is written again: torch counts in-place writes in `_version`, views included.
        """
        key = (weights.data_ptr(), slot)
        version = weights._version
        known = self._ranks.get(key)
        if known is None or known[0] != version:
            used = weights[slot].reshape(-1, weights.shape[-1]).any(dim=1).nonzero()
            known = (version, int(used[-1]) + 1 if len(used) else 0)
            self._ranks[key] = known
        return known[1]

    def _add(
        self,
        groups: Groups,
        y: torch.Tensor,
        x: torch.Tensor,
        a_stacked: tuple[torch.Tensor, ...],
        b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        widths: tuple[int, ...],
    ) -> None:
        """y[rows, offset:offset+width] += scale * (x[rows] A^T) B^T for each group and each slice."""
        for slot, rows in groups:
            inputs = None
            offset = 0
            for a, b, width in zip(a_stacked, b_stacked, widths, strict=True):
                rank = self._rank(a, slot)
                if rank:
                    if inputs is None:
                        inputs = x[rows].to(a.dtype)
                    low = torch.mm(inputs, a[slot].view(-1, a.shape[-1])[:rank].t())
                    if scale != 1.0:
                        low *= scale
                    wide = min(width, b.shape[-2])
                    update = torch.mm(low, b[slot].view(-1, b.shape[-1])[:wide, :rank].t()).to(y.dtype)
                    if isinstance(rows, slice):
                        y[rows, offset : offset + wide] += update
                    else:
                        y[:, offset : offset + wide].index_add_(0, rows, update)
                offset += width

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        *,
        buffer: tuple[torch.Tensor, ...] | None = None,
        **kwargs: Any,
    ) -> None:
        if self._token_groups:
            flat_y, flat_x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
            self._add(
                self._token_groups, flat_y, flat_x, lora_a_stacked, lora_b_stacked, scale, output_slices
            )

    def add_lora_logits(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        scale: float,
        *,
        buffer: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> None:
        if self._sampler_groups:
            flat_y, flat_x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
            widths = (flat_y.shape[-1],)
            self._add(
                self._sampler_groups, flat_y, flat_x, (lora_a_stacked,), (lora_b_stacked,), scale, widths
            )

    def add_lora_embedding(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        add_inputs: bool = True,
        **kwargs: Any,
    ) -> None:
        """y[rows] += x[rows] B^T; `x` [tokens, rank] is already the A row of each token."""
        flat_y, flat_x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        for slot, rows in self._token_groups:
            b = lora_b_stacked[slot].view(-1, lora_b_stacked.shape[-1])
            update = torch.mm(flat_x[rows].to(b.dtype), b.t()).to(y.dtype)
            if isinstance(rows, slice):
                flat_y[rows] += update
            else:
                flat_y.index_add_(0, rows, update)

    def add_shrink(
        self,
        y: tuple[torch.Tensor, ...] | torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        scale: float,
        **kwargs: Any,
    ) -> None:
        """y[i][rows] = scale * x[rows] A_i^T, rows without an adapter 0 (layers sharded over several workers)."""
        flat_x = x.view(-1, x.shape[-1])
        for index, a in enumerate(lora_a_stacked):
            out = y[index].view(-1, y[index].shape[-1])
            out.zero_()
            for slot, rows in self._token_groups:
                if rank := self._rank(a, slot):
                    low = torch.mm(flat_x[rows].to(a.dtype), a[slot].view(-1, a.shape[-1])[:rank].t())
                    out[rows, :rank] = (low * scale).to(out.dtype)

    def add_expand(
        self,
        y: torch.Tensor,
        x: tuple[torch.Tensor, ...] | torch.Tensor,
        lora_b_stacked: tuple[torch.Tensor, ...],
        output_slices: tuple[int, ...],
        offset_start: int = 0,
        add_inputs: bool = True,
        **kwargs: Any,
    ) -> None:
        """y[rows, slice_i] (+)= x[i][rows] B_i^T; rows without an adapter are left alone."""
        flat_y = y.view(-1, y.shape[-1])
        offset = offset_start
        for index, (b, width) in enumerate(zip(lora_b_stacked, output_slices, strict=True)):
            low = x[index].view(-1, x[index].shape[-1])
            for slot, rows in self._token_groups:
                weights = b[slot].view(-1, b.shape[-1])[:width]
                update = torch.mm(low[rows].to(b.dtype), weights.t()).to(y.dtype)
                target = flat_y[:, offset : offset + width]
                if add_inputs:
                    target[rows] = target[rows] + update
                else:
                    target[rows] = update
            offset += width


def self_test() -> str | None:
    """None when base rows stay untouched and adapter rows are exact; else what is wrong, in one line."""
    from vllm.lora.layers import LoRAMapping

    generator = torch.Generator().manual_seed(0)
    slots, rank, width_in, width_out = 3, 4, 16, 12
    a = torch.randn(slots, 1, rank, width_in, generator=generator)
    b = torch.randn(slots, 1, width_out, rank, generator=generator)
    rows = (0, 12, 0, 11, 12)  # adapter id of each token, 0: none; slots hold the ids 11, 12 and nothing
    x = torch.randn(len(rows), width_in, generator=generator)
    try:
        wrapper = GroupedPunicaWrapper(64, max_batches=8, device="cpu", lora_config=None)
        wrapper.update_metadata(LoRAMapping(rows, rows, is_prefill=True), [11, 12, None], slots, 1000)
        linear, logits = torch.zeros(len(rows), width_out), torch.zeros(len(rows), width_out)
        wrapper.add_lora_linear(linear, x, (a,), (b,), 1.0, (width_out,))
        wrapper.add_lora_logits(logits, x, a, b, 1.0)
    except (TypeError, AttributeError, ValueError, RuntimeError, IndexError) as error:
        return f"the engine's LoRA interface changed: {type(error).__name__}: {error}"
    expected = torch.zeros(len(rows), width_out)
    for row, adapter in enumerate(rows):
        if adapter:
            slot = adapter - 11
            expected[row] = b[slot, 0] @ (a[slot, 0] @ x[row])
    for name, found in (("linear", linear), ("logits", logits)):
        if not torch.allclose(found, expected, atol=1e-4):
            return f"{name} update differs from B A x by {float((found - expected).abs().max()):.2g}"
    return None
