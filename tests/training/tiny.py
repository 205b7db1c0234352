"""A tiny random llama with a byte-level tokenizer, and rows that it can learn in a second."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from training.config import TrainConfig
from training.config_file import check_config

TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
ROWS = [
    {"prompt": f"say {word} {number}", "completion": word * number}
    for word in ("ab", "cd", "ef", "gh")
    for number in (1, 2, 3)
]

Write = Callable[[str, list[dict[str, Any]]], Path]
Configure = Callable[..., TrainConfig]


def make_tokenizer() -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|start|>", "<|end|>", "<|pad|>"]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|start|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        chat_template=TEMPLATE,
    )


def make_model(folder: Path, *, tied: bool = True, seed: int = 0) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def make_config(folder: Path, **sections: Any) -> TrainConfig:
    """A small config over ROWS; keyword arguments replace whole sections, None takes one out."""
    train, held_out = write_rows(folder / "train.jsonl", ROWS), write_rows(folder / "eval.jsonl", ROWS[:4])
    values: dict[str, Any] = {
        "model": "tiny",
        "name": "test",
        "dtype": "float32",
        "data": {
            "format": "prompt-completion",
            "train": {"file": str(train)},
            "eval": {"file": str(held_out)},
        },
        "lora_config": {"r": 4, "lora_alpha": 8},
        "optimiser": {"learning_rate": 0.01, "batch_size": 4, "max_steps": 6},
        "evaluation": {"metrics": ["loss"]},
    }
    values.update(sections)
    return check_config({key: value for key, value in values.items() if value is not None})
