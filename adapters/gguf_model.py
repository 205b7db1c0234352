"""A GGUF file of a Llama-like model, turned into the folder that transformers, peft and vLLM read.

Float32 safetensors, config.json, tokenizer.json and the rest, written with numpy and the package `gguf`
alone: no torch, one tensor in memory at a time. The result is what llama.cpp computes with (the weights as
they are after dequantisation), not the unquantised original. Knows nothing of where the file came from.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Progress = Callable[[int, int], None]

# GGUF's name inside a block -> transformers' name inside a layer
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_CONTROL = 3  # token type of special tokens

# How text is cut before merges apply, by GGUF's name for it. `smollm` cuts off every digit first.
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTE_LEVEL],
    },
    "gpt-2": _BYTE_LEVEL,
}


class UnsupportedGguf(Exception):
    """The file is a GGUF file, but not of a kind that this module converts."""


@dataclass(frozen=True, slots=True)
class _Gguf:
    fields: dict[str, Any]
    tensors: list[Any]

    def get(self, key: str) -> Any:
        try:
            return self.fields[key].contents()
        except KeyError:
            raise UnsupportedGguf(f"it lacks `{key}`") from None

    def optional(self, key: str) -> Any:
        return self.fields[key].contents() if key in self.fields else None


def convert(source: Path, target: Path, progress: Progress | None = None) -> None:
    """Write the model folder `target` (which exists and is empty). Raises UnsupportedGguf or OSError."""
    import gguf  # light, but only this function needs it

    reader = gguf.GGUFReader(source)
    model = _Gguf(reader.fields, list(reader.tensors))
    if model.get("general.architecture") != "llama":
        raise UnsupportedGguf(f"its architecture is {model.get('general.architecture')!r}, not 'llama'")
    _write_json(target / "config.json", _config(model))
    _write_json(target / "generation_config.json", _generation_config(model))
    _write_json(target / "tokenizer.json", _tokenizer(model), indent=None)
    _write_json(target / "tokenizer_config.json", _tokenizer_config(model))
    template = model.optional("tokenizer.chat_template")
    if template is not None:
        (target / "chat_template.jinja").write_text(template, "utf-8")
    _write_weights(model, target / "model.safetensors", progress)


def _write_json(path: Path, data: object, indent: int | None = 2) -> None:
    path.write_text(json.dumps(data, indent=indent, ensure_ascii=False) + "\n", "utf-8")


def _short_float(value: float) -> float:
    """The shortest decimal that is the same float32: 1e-05 instead of 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _config(model: _Gguf) -> dict[str, Any]:
    hidden, heads = model.get("llama.embedding_length"), model.get("llama.attention.head_count")
    head_dim = model.optional("llama.rope.dimension_count") or hidden // heads
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": model.get("tokenizer.ggml.bos_token_id"),
        "dtype": "float32",
        "eos_token_id": model.get("tokenizer.ggml.eos_token_id"),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": model.get("llama.feed_forward_length"),
        "max_position_embeddings": model.get("llama.context_length"),
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": model.get("llama.block_count"),
        "num_key_value_heads": model.optional("llama.attention.head_count_kv") or heads,
        "pad_token_id": model.optional("tokenizer.ggml.padding_token_id"),
        "pretraining_tp": 1,
        "rms_norm_eps": _short_float(model.get("llama.attention.layer_norm_rms_epsilon")),
        "rope_parameters": {"rope_theta": model.get("llama.rope.freq_base"), "rope_type": "default"},
        "tie_word_embeddings": not any(tensor.name == "output.weight" for tensor in model.tensors),
        "use_cache": True,
        "vocab_size": len(model.get("tokenizer.ggml.tokens")),
    }


def _generation_config(model: _Gguf) -> dict[str, Any]:
    return {
        "bos_token_id": model.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": model.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": model.optional("tokenizer.ggml.padding_token_id"),
    }


def _tokenizer(model: _Gguf) -> dict[str, Any]:
    if model.get("tokenizer.ggml.model") != "gpt2":
        raise UnsupportedGguf(f"its tokenizer is {model.get('tokenizer.ggml.model')!r}, not byte-level BPE")
    pre = model.optional("tokenizer.ggml.pre") or "gpt-2"
    if pre not in _PRE_TOKENIZERS:
        raise UnsupportedGguf(f"its way of cutting text, {pre!r}, is not known here")
    if model.optional("tokenizer.ggml.add_bos_token"):
        raise UnsupportedGguf("its tokenizer puts a first token before every text")
    tokens: list[str] = model.get("tokenizer.ggml.tokens")
    kinds: list[int] = model.get("tokenizer.ggml.token_type")
    special = [(number, token) for number, token in enumerate(tokens) if kinds[number] == _CONTROL]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": token, **flags} for number, token in special],
        "normalizer": None,
        "pre_tokenizer": _PRE_TOKENIZERS[pre],
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in model.get("tokenizer.ggml.merges")],
        },
    }


def _tokenizer_config(model: _Gguf) -> dict[str, Any]:
    tokens: list[str] = model.get("tokenizer.ggml.tokens")

    def token(role: str) -> str | None:
        number = model.optional(f"tokenizer.ggml.{role}_token_id")
        return None if number is None else tokens[number]

    return {
        "add_prefix_space": False,
        "bos_token": token("bos"),
        "clean_up_tokenization_spaces": False,
        "eos_token": token("eos"),
        "model_max_length": model.get("llama.context_length"),
        "pad_token": token("padding"),
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": token("unknown"),
    }


def _target_name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if stem in _TOP:
        return f"{_TOP[stem]}.weight"
    block, _, rest = stem.partition(".")[2].partition(".")
    if stem.startswith("blk.") and block.isdigit() and rest in _LAYER:
        return f"model.layers.{block}.{_LAYER[rest]}.weight"
    raise UnsupportedGguf(f"it has the unknown tensor `{name}`")


def _write_weights(model: _Gguf, target: Path, progress: Progress | None) -> None:
    from gguf.quants import dequantize

    heads = model.get("llama.attention.head_count")
    groups = {"attn_q": heads, "attn_k": model.optional("llama.attention.head_count_kv") or heads}
    order = sorted(model.tensors, key=lambda tensor: _target_name(tensor.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for tensor in order:
        shape = [int(size) for size in reversed(tensor.shape)]
        size = 4 * int(np.prod(shape))
        offsets = [position, position + size]
        header[_target_name(tensor.name)] = {"dtype": "F32", "shape": shape, "data_offsets": offsets}
        position += size
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with target.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for number, tensor in enumerate(order, 1):
            values = dequantize(tensor.data, tensor.tensor_type).astype("<f4", copy=False)
            kind = tensor.name.removesuffix(".weight").rpartition(".")[2]
            if kind in groups:
                values = _unpermute(values, groups[kind])
            file.write(np.ascontiguousarray(values).tobytes())
            if progress is not None:
                progress(number, len(order))


def _unpermute(weights: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """llama.cpp interleaves the two halves that rotary embedding pairs; transformers keeps them apart."""
    half = weights.shape[0] // heads // 2
    return weights.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(weights.shape)
