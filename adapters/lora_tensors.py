"""An adapter's tensors against the base's modules: every tensor must have its place, shape and rank.

Works on headers only. Which weight of which module a name means is vLLM's rule (an optional
`base_model.model.` in front, `.lora_A.weight`, `.lora_B.weight`, `.lora_embedding_A|B` behind), because what
the engine cannot place it partly ignores without a word.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from adapters import tensors
from adapters.base import EMBEDDINGS, BaseModel, weight_files
from adapters.errors import Refused
from adapters.lora_config import LoraConfig
from adapters.tensors import Tensor, TensorFile

PREFIX = "base_model.model."
DTYPES = ("F32", "BF16", "F16")
MERGE = "`onebase adapters merge FOLDER --base BASE --out DIR` makes a whole model of it"

_LINEAR = re.compile(r"(.+)\.lora_([AB])\.weight")
_EMBEDDING = re.compile(r"(.+)\.lora_embedding_([AB])")
_NAMED = re.compile(r".+\.lora_(?:embedding_)?[AB]\.([^.]+)(?:\.weight)?")
_FULL = re.compile(r"(.+?)(?:\.base_layer)?\.weight")

# Parts of names that other methods leave. The first that matches decides.
_FOREIGN = (
    (
        re.compile(r"lora_magnitude_vector"),
        "dora_undeclared",
        "DoRA's magnitudes, though use_dora is not set",
    ),
    (re.compile(r"\.hada_w|\.hada_t"), "loha_adapter", "LoHa"),
    (re.compile(r"\.lokr_[wt]"), "lokr_adapter", "LoKr"),
    (re.compile(r"vera_lambda|vera_[AB]\b"), "vera_adapter", "VeRA"),
    (re.compile(r"\.ia3_l"), "ia3_adapter", "IA3"),
    (re.compile(r"\.lora_E$|\.lora_E\.|\.ranknum"), "adalora_adapter", "AdaLoRA"),
    (re.compile(r"\.b?oft_[rRs]\b"), "oft_adapter", "OFT"),
    (re.compile(r"prompt_embeddings|prompt_encoder"), "prompt_adapter", "prompt tuning"),
    (re.compile(r"trainable_tokens|token_adapter"), "trainable_tokens", "single trained token embeddings"),
    (re.compile(r"modules_to_save"), "modules_to_save", "a module trained in full"),
    (re.compile(r"\.bias$"), "bias", "a trained bias"),
)


@dataclass(frozen=True, slots=True)
class Pair:
    """One module's A (rank x in) and B (out x rank)."""

    module: str
    a: Tensor
    b: Tensor

    @property
    def rank(self) -> int:
        return self.a.shape[0]


@dataclass(frozen=True, slots=True)
class Layout:
    """What is served: the pairs, and how the file's tensors are called in the served file."""

    pairs: tuple[Pair, ...]
    names: Mapping[str, str]  # tensor name -> name to store it under; what is absent is stripped
    stripped: tuple[str, ...]  # copies of the base that need not be kept


def arrange(file: TensorFile, config: LoraConfig, base: BaseModel) -> Layout:
    """Place every tensor; raises Refused, the most telling reason first."""
    if not file.tensors:
        raise Refused("no_tensors", f"{file.path.name} holds no tensor at all. Save the adapter again.")
    halves: dict[str, dict[str, Tensor]] = {}
    full: list[tuple[Tensor, str]] = []
    names: dict[str, str] = {}
    for tensor in file.tensors.values():
        path = tensor.name.removeprefix(PREFIX)
        match = _LINEAR.fullmatch(path) or _EMBEDDING.fullmatch(path)
        if match is not None:
            halves.setdefault(match[1], {})[match[2]] = tensor
            names[tensor.name] = PREFIX + path
            continue
        _refuse_foreign(tensor, path)
        weight = _FULL.fullmatch(path)
        if weight is None:
            raise Refused(
                "unknown_tensor",
                f"The tensor `{tensor.name}` is no part of a LoRA. Save the adapter with peft's "
                "`model.save_pretrained(folder)`.",
                param=tensor.name,
            )
        full.append((tensor, weight[1]))
    _check_modules(halves, base)
    kept_heads, stripped = _place_full(file, full, config, base)
    names.update(kept_heads)
    if not halves:
        raise Refused(
            "no_matching_module", f"{file.path.name} holds no LoRA weights. Save the adapter again."
        )
    pairs = [_pair(module, parts) for module, parts in sorted(halves.items())]
    for name in names:
        _check_type(file.tensors[name])
    _check_shapes(pairs, base)
    _check_ranks(pairs, config)
    return Layout(tuple(pairs), names, tuple(stripped))


def _refuse_foreign(tensor: Tensor, path: str) -> None:
    for pattern, reason, what in _FOREIGN:
        if pattern.search(path):
            raise Refused(
                reason,
                f"The tensor `{tensor.name}` is {what}, which is not served as an adapter. {MERGE}.",
                param=tensor.name,
            )
    named = _NAMED.fullmatch(path)
    if named is not None:
        raise Refused(
            "adapter_name_in_tensors",
            f"The tensor `{tensor.name}` carries the adapter's name ({named[1]!r}), so it was not saved by "
            "peft's `model.save_pretrained(folder)`. Save it that way.",
            param=tensor.name,
        )


def _numberless(path: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.)", "#", path)


def _check_modules(halves: Mapping[str, Mapping[str, Tensor]], base: BaseModel) -> None:
    unknown = [module for module in halves if module not in base.modules]
    if not unknown:
        return
    first = unknown[0]
    if len(unknown) == len(halves):
        example = next(iter(base.modules), "none")
        raise Refused(
            "no_matching_module",
            f"None of the adapter's {len(halves)} modules exists in {base.name}: it names `{first}`, the "
            f"base `{example}`. It belongs to another base.",
            param=first,
        )
    shapes = {_numberless(module) for module in base.modules}
    extra = [module for module in unknown if _numberless(module) in shapes]
    if len(extra) == len(unknown):
        raise Refused(
            "extra_layers",
            f"The adapter has `{first}`, and {base.name} has fewer layers ({len(unknown)} modules too many). "
            "It was trained on a deeper base.",
            param=first,
        )
    other = next(module for module in unknown if module not in extra)
    raise Refused(
        "unknown_module",
        f"The adapter has weights for `{other}`, which {base.name} does not have. Train it on this base, or "
        "remove these tensors if they are not needed.",
        param=other,
    )


def _place_full(
    file: TensorFile, full: list[tuple[Tensor, str]], config: LoraConfig, base: BaseModel
) -> tuple[dict[str, str], list[str]]:
    """Whole weights: a classification head is kept, a copy of the base's embeddings is stripped."""
    kept: dict[str, str] = {}
    stripped: list[str] = []
    for tensor, module in full:
        last = module.rpartition(".")[2]
        if last in config.modules_to_save:
            if base.modules.get(module) != tensor.shape:
                raise Refused(
                    "modules_to_save",
                    f"`{tensor.name}` is a classification head, and {base.name} has none of that shape. "
                    "Serve it on a base with such a head.",
                    param=tensor.name,
                )
            kept[tensor.name] = PREFIX + tensor.name.removeprefix(PREFIX)
        elif last in EMBEDDINGS or last == "lm_head":
            _require_copy(file, tensor, module, base)
            stripped.append(tensor.name)
        else:
            raise Refused(
                "full_weights",
                f"`{tensor.name}` is a whole weight beside the LoRA, which an engine that shares one base "
                f"cannot swap. {MERGE}.",
                param=tensor.name,
            )
    return kept, stripped


def _require_copy(file: TensorFile, tensor: Tensor, module: str, base: BaseModel) -> None:
    """peft saves embeddings along when it fears that they changed; an unchanged copy is harmless."""
    wanted = [module, *(path for path in base.modules if path.rpartition(".")[2] in EMBEDDINGS)]
    candidates = {f"{path}.weight" for path in (wanted if module == "lm_head" else wanted[:1])}
    own_head = f"{module}.weight"
    for path in weight_files(base.folder):
        stored = tensors.read_header(path)
        if own_head in stored.tensors:
            candidates = {own_head}  # a head of its own is not compared with the embeddings
    for path in weight_files(base.folder):
        stored = tensors.read_header(path)
        for name in candidates & set(stored.tensors):
            if tensors.same_values(file, tensor, stored, stored.tensors[name]):
                return
    rows = base.modules.get(module, (0, 0))
    if tensor.shape != rows:
        raise Refused(
            "resized_embeddings",
            f"`{tensor.name}` has the shape {list(tensor.shape)}, and {base.name} has {list(rows)}: tokens "
            f"were added. {MERGE}.",
            param=tensor.name,
        )
    raise Refused(
        "changed_embeddings",
        f"`{tensor.name}` is a whole weight that differs from {base.name}'s, so it was trained along; an "
        f"engine that shares one base cannot swap it. {MERGE}.",
        param=tensor.name,
    )


def _pair(module: str, parts: Mapping[str, Tensor]) -> Pair:
    if len(parts) < 2:
        there = next(iter(parts))
        missing = "B" if there == "A" else "A"
        raise Refused(
            "missing_pair",
            f"`{parts[there].name}` has no lora_{missing} beside it. The file is incomplete: save the "
            f"adapter again.",
            param=parts[there].name,
        )
    return Pair(module, parts["A"], parts["B"])


def _check_type(tensor: Tensor) -> None:
    if tensor.dtype not in DTYPES:
        raise Refused(
            "wrong_dtype",
            f"`{tensor.name}` is stored as {tensor.dtype}; LoRA weights must be F32, BF16 or F16. Save the "
            "adapter unquantised.",
            param=tensor.name,
        )


def _expected(pair: Pair, base: BaseModel) -> tuple[int, int]:
    """(outputs, inputs) that fit the base; an embedding reads token ids."""
    rows, columns = base.modules[pair.module]
    return (columns, rows) if ".lora_embedding_" in pair.a.name else (rows, columns)


def _check_shapes(pairs: list[Pair], base: BaseModel) -> None:
    wrong: list[tuple[Pair, str]] = []
    smaller = larger = 0
    for pair in pairs:
        if len(pair.a.shape) != 2 or len(pair.b.shape) != 2:
            raise Refused(
                "wrong_shape",
                f"`{pair.a.name}` or its lora_B is not a matrix ({list(pair.a.shape)}, "
                f"{list(pair.b.shape)}). Save the adapter again.",
                param=pair.a.name,
            )
        outputs, inputs = _expected(pair, base)
        found_out, found_in = pair.b.shape[0], pair.a.shape[1]
        if (found_out, found_in) != (outputs, inputs):
            text = (
                f"`{pair.module}` is {found_out} x {found_in} in the adapter "
                f"and {outputs} x {inputs} in the base"
            )
            wrong.append((pair, text))
            smaller += found_out <= outputs and found_in <= inputs
            larger += found_out >= outputs and found_in >= inputs
    if not wrong:
        return
    first, text = wrong[0]
    if len(wrong) < len(pairs):
        tensor = first.a if first.a.shape[1] != _expected(first, base)[1] else first.b
        raise Refused(
            "wrong_shape",
            f"{text} (tensor `{tensor.name}`), while {len(pairs) - len(wrong)} of {len(pairs)} modules fit. "
            "The file is damaged or edited: save the adapter again.",
            param=tensor.name,
        )
    reason = (
        "smaller_base" if smaller == len(wrong) else "larger_base" if larger == len(wrong) else "other_base"
    )
    size = {"smaller_base": "a smaller", "larger_base": "a larger", "other_base": "another"}[reason]
    raise Refused(
        reason,
        f"No module fits {base.name}: {text}. The adapter was trained on {size} base"
        + (f" than `{base.name}`" if size != "another" else "")
        + ". Serve it on its own base, or train it on this one.",
        param=first.a.name,
    )


def _check_ranks(pairs: list[Pair], config: LoraConfig) -> None:
    for pair in pairs:
        if pair.b.shape[1] != pair.rank:
            raise Refused(
                "wrong_shape",
                f"`{pair.a.name}` has rank {pair.rank} and its lora_B {pair.b.shape[1]}. The file is "
                "damaged or edited: save the adapter again.",
                param=pair.b.name,
            )
        declared = config.rank_of(pair.module)
        if pair.rank != declared:
            raise Refused(
                "rank_mismatch",
                f"`{pair.a.name}` has rank {pair.rank}, and adapter_config.json declares {declared} (r, "
                "rank_pattern), so its scale would be wrong. Use the adapter_config.json of the same "
                "training.",
                param=pair.a.name,
            )
        if not config.declares(pair.module):
            raise Refused(
                "undeclared_module",
                f"There are weights for `{pair.module}`, and target_modules does not cover it, so peft "
                "would ignore them and the engine apply them. Use the adapter_config.json of the same "
                "training.",
                param=pair.module,
            )
