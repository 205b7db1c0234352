"""Opens the base for computing: tokenizer, weights, device and number format; and attaches LoRA where it is
asked for.
"""

from __future__ import annotations

import contextlib
import difflib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from adapters.base import BaseModel
from training.config import LoraConfig
from training.errors import ModelProblem


@dataclass(frozen=True, slots=True)
class Hardware:
    """`weights` is how a frozen base is held, `arithmetic` how matrices are multiplied; what is trained is
    float32.
    """

    device: str
    weights: torch.dtype
    arithmetic: torch.dtype

    @property
    def name(self) -> str:
        return str(self.arithmetic).removeprefix("torch.")


def pick_hardware(dtype: Literal["auto", "float32", "bfloat16"] = "auto") -> Hardware:
    """bfloat16 where the hardware has instructions for it; on a CPU without them it is many times slower.

    On a CPU the base stays float32 and only the arithmetic is bfloat16: measured 1.3 s a step, against 2.4 s
    in float32 and 5.4 s with the base in bfloat16 as well (SmolLM2-135M, two cores with avx512_bf16).
    """
    if torch.cuda.is_available():
        device, able = "cuda", torch.cuda.is_bf16_supported()
    else:
        device, able = "cpu", _cpu_has_bf16()
    if dtype == "float32" or (dtype == "auto" and not able):
        return Hardware(device, torch.float32, torch.float32)
    return Hardware(device, torch.bfloat16 if device == "cuda" else torch.float32, torch.bfloat16)


def _cpu_has_bf16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux: the slow way is at least right
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def open_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def open_model(folder: Path, dtype: torch.dtype, device: str = "cpu") -> Any:
    from transformers import AutoModelForCausalLM

    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    return model.to(device)


def attach(model: Any, lora: LoraConfig | None, base: BaseModel) -> Any:
    """The model to train: the base itself, or the base with LoRA in it. This is where the methods part."""
    if lora is None:
        return model
    import peft

    _check_targets(lora, base)
    settings = peft.LoraConfig(**lora.model_dump(), revision=base.revision)
    with warnings.catch_warnings():
        # Said of tied embeddings, whose merge we take care of ourselves (merge.py).
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*")
        adapted = peft.get_peft_model(model, settings)
    adapted.create_or_update_model_card = _no_model_card
    return adapted


def _no_model_card(_folder: str) -> None:
    """peft writes a README of blanks to fill in with every save; lineage records say more."""


def _check_targets(lora: LoraConfig, base: BaseModel) -> None:
    """peft skips a target that matches nothing while another does; a mistyped name would go unnoticed."""
    if lora.target_modules == "all-linear":
        return
    names = sorted({path.rpartition(".")[2] for path in base.modules})
    for index, target in enumerate(lora.target_modules):
        if any(path == target or path.endswith(f".{target}") for path in base.modules):
            continue
        near = difflib.get_close_matches(target, names, n=1)
        raise ModelProblem(
            f"lora_config.target_modules[{index}] is {target!r}, which {base.name} does not have; "
            + (f"did you mean {near[0]!r}?" if near else f"it has {', '.join(names)}"),
            param="lora_config.target_modules",
        )


def trainable_parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def end_tokens(tokenizer: Any, model: Any) -> frozenset[int]:
    """Every token that ends an answer: the tokenizer's, and those of the generation config."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = {tokenizer.eos_token_id}
    found.update(configured if isinstance(configured, list) else [configured])
    return frozenset(token for token in found if token is not None)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' own bars and notices: progress and problems are reported by us."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
