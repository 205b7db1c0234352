"""A base of a few kilobytes and adapters for it, made with numpy: nothing to fetch, no torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

WIDTH, INNER, VOCABULARY, LAYERS = 8, 16, 32, 2
SHAPES = {
    "self_attn.q_proj": (WIDTH, WIDTH),
    "self_attn.k_proj": (WIDTH // 2, WIDTH),
    "self_attn.v_proj": (WIDTH // 2, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH),
    "mlp.gate_proj": (INNER, WIDTH),
    "mlp.up_proj": (INNER, WIDTH),
    "mlp.down_proj": (WIDTH, INNER),
}


@pytest.fixture
def tiny_base(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Llama of two layers in a folder, which the settings name as the model to serve."""
    folder = tmp_path / "tiny-llama"
    folder.mkdir()
    numbers = np.random.default_rng(0)

    def weights(*shape: int) -> np.ndarray:
        return numbers.standard_normal(shape, dtype=np.float32)

    tensors = {
        "model.embed_tokens.weight": weights(VOCABULARY, WIDTH),
        "model.norm.weight": weights(WIDTH),
    }
    for layer in range(LAYERS):
        for module, shape in SHAPES.items():
            tensors[f"model.layers.{layer}.{module}.weight"] = weights(*shape)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{norm}.weight"] = weights(WIDTH)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }
    tokenizer = {
        "version": "1.0",
        "model": {
            "type": "BPE",
            "vocab": {f"t{number}": number for number in range(VOCABULARY)},
            "merges": [],
        },
        "added_tokens": [],
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    monkeypatch.setenv("ONEBASE_MODEL", str(folder))
    return folder


@pytest.fixture
def adapter(tmp_path: Path, tiny_base: Path) -> Callable[..., Path]:
    """Writes a LoRA as peft saves it: `adapter(seed=1, rank=2)`."""

    def write(seed: int = 0, rank: int = 2, dora: bool = False) -> Path:
        folder = tmp_path / f"adapter-{seed}-{rank}-{dora}"
        folder.mkdir(exist_ok=True)
        numbers = np.random.default_rng(seed + 1)
        tensors = {}
        for layer in range(LAYERS):
            rows, columns = SHAPES["self_attn.q_proj"]
            prefix = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
            tensors[f"{prefix}.lora_A.weight"] = numbers.standard_normal((rank, columns), dtype=np.float32)
            tensors[f"{prefix}.lora_B.weight"] = numbers.standard_normal((rows, rank), dtype=np.float32)
        save_file(tensors, folder / "adapter_model.safetensors")
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": "tiny-llama",
            "r": rank,
            "lora_alpha": 2 * rank,
            "target_modules": ["q_proj"],
            "bias": "none",
            "use_dora": dora,
        }
        (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
        return folder

    return write
