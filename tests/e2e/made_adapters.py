"""Adapters made from a seed, strong enough that each answers in its own way: for tests of serving, not of learning."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def make_adapter(
    folder: Path,
    modules: Mapping[str, tuple[int, int]],
    *,
    seed: int,
    rank: int = 8,
    targets: Sequence[str] = LINEAR,
    use_rslora: bool = False,
    size: float = 0.02,
) -> Path:
    """A PEFT LoRA folder for a base with `modules` (path -> (out, in)); `size` scales its effect."""
    random = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    for path, (width_out, width_in) in modules.items():
        if path.rsplit(".", 1)[-1] in targets:
            key = f"base_model.model.{path}"
            tensors[f"{key}.lora_A.weight"] = random.normal(0, 0.05, (rank, width_in)).astype(np.float32)
            tensors[f"{key}.lora_B.weight"] = random.normal(0, size, (width_out, rank)).astype(np.float32)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "smollm2-135m",
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": use_rslora,
        "target_modules": list(targets),
    }
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
