"""A tiny base model (llama-like names, no real weights) and a registry over a temporary store."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save_file

from adapters.base import BaseModel, open_base
from adapters.registry import Registry
from adapters.store import LocalStore

HIDDEN, HEADS_OUT, INNER, VOCABULARY, LAYERS = 16, 8, 24, 32, 3


def tokenizer(extra: dict[str, int] | None = None) -> dict[str, object]:
    tokens = {f"t{number}": number for number in range(VOCABULARY)} | (extra or {})
    return {
        "added_tokens": [{"id": 0, "content": "t0", "special": True}],
        "model": {"type": "BPE", "vocab": tokens, "merges": ["t 1", "t 2"]},
    }


def write_base(folder: Path, *, seed: int = 0, hidden: int = HIDDEN, layers: int = LAYERS) -> Path:
    """A model folder as transformers would save it."""
    folder.mkdir(parents=True)
    numbers = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> npt.NDArray[np.float32]:
        return numbers.normal(size=(rows, columns)).astype(np.float32)

    weights: dict[str, npt.NDArray[np.float32]] = {"model.embed_tokens.weight": matrix(VOCABULARY, hidden)}
    for layer in range(layers):
        start = f"model.layers.{layer}"
        weights |= {
            f"{start}.self_attn.q_proj.weight": matrix(hidden, hidden),
            f"{start}.self_attn.v_proj.weight": matrix(HEADS_OUT, hidden),
            f"{start}.mlp.down_proj.weight": matrix(hidden, INNER),
            f"{start}.input_layernorm.weight": np.ones(hidden, dtype=np.float32),
        }
    save_file(weights, folder / "model.safetensors")
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer()))
    (folder / "chat_template.jinja").write_text("{{ messages }}\n")
    return folder


@pytest.fixture
def base(tmp_path: Path) -> BaseModel:
    return open_base(str(write_base(tmp_path / "tiny-base")), home=tmp_path / "home")


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(LocalStore(tmp_path / "home" / "registry"), cache=tmp_path / "home" / "cache")
