"""adapter_config.json: read it, and refuse by name whatever is not a LoRA that can be served as it is.

The rules for rank and scale per module are peft's own (`rank_pattern`, `alpha_pattern`, `use_rslora`), which
vLLM 0.32 applies in the same way. Tensors are not known here.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from adapters.errors import Refused

MAX_CONFIG = 4 << 20
MAX_PATTERNS = 5000

Value = TypeVar("Value")

_HEADS = {"score", "classifier"}
_TIED = {"lm_head", "embed_tokens"}
_MERGE = (
    "`onebase adapters merge FOLDER --base BASE --out DIR` makes a whole model of it, to be served as a base"
)
_RETRAIN = "Train a LoRA instead"

# peft_type -> (reason, what to do). Everything but LORA is refused.
_TYPES = {
    "LOHA": ("loha_adapter", _MERGE),
    "LOKR": ("lokr_adapter", _MERGE),
    "VERA": ("vera_adapter", _MERGE),
    "IA3": ("ia3_adapter", _MERGE),
    "ADALORA": ("adalora_adapter", _MERGE),
    "OFT": ("oft_adapter", _MERGE),
    "BOFT": ("oft_adapter", _MERGE),
    "PROMPT_TUNING": ("prompt_adapter", _RETRAIN),
    "MULTITASK_PROMPT_TUNING": ("prompt_adapter", _RETRAIN),
    "P_TUNING": ("prompt_adapter", _RETRAIN),
    "PREFIX_TUNING": ("prompt_adapter", _RETRAIN),
}

# Settings that change what the weights mean, which the engine does not apply: field -> (reason, name, mend).
_FEATURES = {
    "use_dora": ("dora", "DoRA", _MERGE),
    "lora_bias": ("bias", "a LoRA with bias", "Train with `lora_bias: false`"),
    "alora_invocation_tokens": ("alora", "an activated LoRA (aLoRA)", _RETRAIN),
    "layer_replication": ("layer_replication", "LoRA over replicated layers", _MERGE),
    "use_bdlora": ("bdlora", "block-diagonal LoRA", _MERGE),
    "use_qalora": ("qalora", "QA-LoRA", _MERGE),
    "arrow_config": ("arrow", "an Arrow router over several adapters", "Publish each adapter on its own"),
    "kasa_config": ("kasa", "KaSA", _MERGE),
    "monteclora_config": ("monteclora", "MonteCLoRA", _RETRAIN),
    "trainable_token_indices": ("trainable_tokens", "single trained token embeddings", _MERGE),
    "target_parameters": ("target_parameters", "LoRA on bare parameters (`target_parameters`)", _MERGE),
}

# Initialisations that take something out of the base's weights; the saved A and B only fit a changed base.
_INITS = {"pissa": "PiSSA", "olora": "OLoRA", "corda": "CorDA", "loftq": "LoftQ"}


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """What of adapter_config.json matters for serving, checked."""

    rank: int
    alpha: float
    use_rslora: bool
    target_modules: tuple[str, ...] | str
    modules_to_save: tuple[str, ...]
    base_hint: str | None
    ensure_weight_tying: bool
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)

    @property
    def scale(self) -> float:
        return self._scale(self.rank, self.alpha)

    @property
    def highest_rank(self) -> int:
        """What the engine compares with its maximum, whether or not a module has that rank."""
        return max([self.rank, *self.rank_pattern.values()])

    def rank_of(self, module: str) -> int:
        return _matching(self.rank_pattern, module) or self.rank

    def scale_of(self, module: str) -> float:
        alpha = _matching(self.alpha_pattern, module)
        return self._scale(self.rank_of(module), self.alpha if alpha is None else alpha)

    def declares(self, module: str) -> bool:
        """Does `target_modules` cover this module? A regular expression is taken at its word."""
        if isinstance(self.target_modules, str) or not self.target_modules:
            return True
        if self.ensure_weight_tying and module.rpartition(".")[2] in _TIED:
            return True  # peft adds the other end of the tie by itself
        return any(module == target or module.endswith(f".{target}") for target in self.target_modules)

    def _scale(self, rank: int, alpha: float) -> float:
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank


def _matching(pattern: dict[str, Value], module: str) -> Value | None:
    """peft's rule: a key matches the end of the path, from a dot on; the first that matches wins."""
    for key, value in pattern.items():
        if _compiled(key).match(module):
            return value
    return None


@lru_cache(maxsize=2 * MAX_PATTERNS)
def _compiled(key: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({key})$")


def read(path: Path) -> LoraConfig:
    """Raises Refused: broken JSON, another method than LoRA, or a LoRA variant that cannot be served."""
    data = _load(path)
    kind = data.get("peft_type")
    if kind != "LORA":
        if not isinstance(kind, str):
            raise _bad("peft_type", kind, 'it must be "LORA"')
        reason, mend = _TYPES.get(kind, ("other_adapter_type", _MERGE))
        raise Refused(
            reason,
            f"peft_type is {kind!r}; only LORA can be served as an adapter. {mend}.",
            param="peft_type",
        )
    for name, (reason, what, mend) in _FEATURES.items():
        if data.get(name):
            raise Refused(
                reason,
                f"{name} is set: the adapter is {what}, which the engine does not apply. {mend}.",
                param=name,
            )
    if data.get("bias", "none") != "none":
        raise Refused(
            "bias",
            f"bias is {data['bias']!r}: biases were trained along, and the engine does not apply them. "
            f'Train with `bias: "none"`, or {_MERGE}.',
            param="bias",
        )
    _check_init(data.get("init_lora_weights"))
    rank = data.get("r")
    if type(rank) is not int or rank < 1:
        raise Refused("bad_rank", f"r is {rank!r}; the rank must be a whole number of at least 1.", param="r")
    alpha = _number(data.get("lora_alpha"), "lora_alpha")
    return LoraConfig(
        rank=rank,
        alpha=alpha,
        use_rslora=_flag(data, "use_rslora"),
        target_modules=_names(data, "target_modules"),
        modules_to_save=_modules_to_save(data),
        base_hint=_text(data, "base_model_name_or_path"),
        ensure_weight_tying=_flag(data, "ensure_weight_tying"),
        rank_pattern=_ranks(data),
        alpha_pattern={
            key: _number(value, f"alpha_pattern[{key!r}]")
            for key, value in _pattern(data, "alpha_pattern").items()
        },
    )


def _load(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MAX_CONFIG:
        raise Refused("bad_config", f"{path.name} has more than {MAX_CONFIG} bytes.", param=path.name)
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        where = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        raise Refused(
            "bad_config", f"{path.name} is not JSON{where}. Save the adapter again.", param=path.name
        ) from None
    if not isinstance(data, dict):
        raise Refused(
            "bad_config", f"{path.name} is not a JSON object. Save the adapter again.", param=path.name
        )
    return data


def _bad(name: str, value: object, rule: str) -> Refused:
    return Refused(
        "bad_config", f"{name} is {str(value)[:80]!r}; {rule}. Save the adapter again with peft.", param=name
    )


def _check_init(init: object) -> None:
    if not isinstance(init, str):
        return
    kind = _INITS.get(init.lower().split("_niter")[0])
    if kind is not None:
        raise Refused(
            "unconverted_init",
            f"init_lora_weights is {init!r}: {kind} takes part of the base's weights away, so the saved A "
            "and B do not fit the base as it is. Save it again with peft's `save_pretrained(..., "
            "path_initial_model_for_weight_conversion=...)`, which makes it a plain LoRA of twice the rank.",
            param="init_lora_weights",
        )
    if init.lower() not in {"gaussian", "eva", "orthogonal", "mica", "lora_ga"}:
        raise Refused(
            "unknown_init",
            f"init_lora_weights is {init!r}, which the engine does not know. If the adapter fits the "
            "unchanged base, set it to true.",
            param="init_lora_weights",
        )


def _number(value: object, name: str) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value)
        or value <= 0
    ):
        raise Refused("bad_alpha", f"{name} is {value!r}; it must be a number above 0.", param="lora_alpha")
    return float(value)


def _flag(data: dict[str, Any], name: str) -> bool:
    value = data.get(name) or False
    if not isinstance(value, bool):
        raise _bad(name, value, "it must be true or false")
    return value


def _text(data: dict[str, Any], name: str) -> str | None:
    value = data.get(name)
    if value is not None and not isinstance(value, str):
        raise _bad(name, value, "it must be text")
    return value or None


def _names(data: dict[str, Any], name: str) -> tuple[str, ...] | str:
    value = data.get(name)
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        return tuple(sorted(value))
    raise _bad(name, value, "it must be a list of module names, or one regular expression")


def _modules_to_save(data: dict[str, Any]) -> tuple[str, ...]:
    value = data.get("modules_to_save") or []
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise _bad("modules_to_save", value, "it must be a list of module names")
    others = sorted(set(value) - _HEADS)
    if others:
        raise Refused(
            "modules_to_save",
            f"modules_to_save names `{others[0]}`: it was trained in full, and an engine that shares one "
            f"base cannot swap it. {_MERGE}; or train it with LoRA (target_modules).",
            param="modules_to_save",
        )
    return tuple(sorted(value))


def _pattern(data: dict[str, Any], name: str) -> dict[str, Any]:
    value = data.get(name) or {}
    if not isinstance(value, dict):
        raise _bad(name, value, "it must be a table")
    if len(value) > MAX_PATTERNS:
        raise _bad(name, f"{len(value)} entries", f"at most {MAX_PATTERNS} are possible")
    for key in value:
        # These are regular expressions that the engine will run inside a step: none that could take forever.
        if len(key) > 300 or sum(key.count(sign) for sign in "*+{?") > 3 or re.search(r"\)[*+{?]", key):
            raise Refused(
                "unsafe_pattern",
                f"{name} has the key {key[:80]!r}, which is too complex to be run safely. "
                "Name the modules plainly.",
                param=name,
            )
        try:
            _compiled(key)
        except re.error:
            raise _bad(name, key, "it is not a regular expression") from None
    return value


def _ranks(data: dict[str, Any]) -> dict[str, int]:
    pattern = _pattern(data, "rank_pattern")
    for key, value in pattern.items():
        if type(value) is not int or value < 1:
            raise Refused(
                "bad_rank",
                f"rank_pattern[{key!r}] is {value!r}; a rank is a whole number of at least 1.",
                param="rank_pattern",
            )
    return pattern
