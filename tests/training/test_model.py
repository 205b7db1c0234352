from __future__ import annotations

import pytest
import torch

import training.model as module
from training.model import Hardware, pick_hardware


@pytest.mark.parametrize(
    ("asked", "able", "expected"),
    [
        ("auto", True, Hardware("cpu", torch.float32, torch.bfloat16)),
        ("auto", False, Hardware("cpu", torch.float32, torch.float32)),
        ("float32", True, Hardware("cpu", torch.float32, torch.float32)),
        ("bfloat16", False, Hardware("cpu", torch.float32, torch.bfloat16)),
    ],
)
def test_the_processor_decides(
    monkeypatch: pytest.MonkeyPatch, asked: str, able: bool, expected: Hardware
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(module, "_cpu_has_bf16", lambda: able)
    assert pick_hardware(asked) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(("able", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_gpu_holds_the_base_in_what_it_computes(
    monkeypatch: pytest.MonkeyPatch, able: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: able)
    assert pick_hardware() == Hardware("cuda", dtype, dtype)
