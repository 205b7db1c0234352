"""Everything that can be told from an adapter's files: fit for this base, or refused with a reason.

`check_folder` raises `Refused(reason, message)`; `REASONS` lists every reason. What passes comes back as
`Checked`: what the manifest says of it, and which files are kept (`write`), normalised where that is exact.
Nothing is unpickled, no tensor is held whole in memory, and no engine is asked.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapters import companions, disk, fingerprint, folder, lora_config, lora_tensors, tensors
from adapters.base import EMBEDDINGS, BaseModel
from adapters.errors import Refused
from adapters.lora_config import LoraConfig
from adapters.lora_tensors import Layout
from adapters.manifest import BaseStatus, Evidence, FileEntry, Serving
from adapters.tensors import TensorFile

MAX_RANK = 512  # the engine's own limit
MAX_HEADER = 16 << 20

CHECKS = ("folder", "config", "tensors", "shapes", "rank", "tokenizer", "base", "finite", "effect_possible")

REASONS: Mapping[str, str] = {
    "missing_folder": "the path is not a folder",
    "empty_folder": "the folder is empty",
    "unexpected_folder": "a folder inside (a whole run with checkpoints)",
    "unexpected_file": "a file that does not belong (code, a pickle, other weights)",
    "symlink_outside": "a link that leaves the folder",
    "broken_symlink": "a link to nothing",
    "too_many_files": "too many files",
    "file_too_large": "a file too large for any adapter of this base",
    "full_model": "a whole model instead of an adapter",
    "missing_config": "no adapter_config.json",
    "bad_config": "adapter_config.json is broken, or a field has the wrong type",
    "missing_weights": "no adapter_model.safetensors",
    "pickled_weights": "weights only as a pickle (.bin, .pt)",
    "empty_weights": "adapter_model.safetensors has 0 bytes",
    "truncated_weights": "adapter_model.safetensors ends too early",
    "bad_weights": "adapter_model.safetensors is not a safetensors file",
    "no_tensors": "adapter_model.safetensors holds no tensor",
    "unreadable": "a file cannot be read",
    "changed_while_read": "the files changed during the check",
    "loha_adapter": "LoHa",
    "lokr_adapter": "LoKr",
    "vera_adapter": "VeRA",
    "ia3_adapter": "IA3",
    "adalora_adapter": "AdaLoRA",
    "oft_adapter": "OFT or BOFT",
    "prompt_adapter": "prompt, prefix or p-tuning",
    "other_adapter_type": "another peft method than LoRA",
    "dora": "DoRA, declared",
    "dora_undeclared": "DoRA's tensors without use_dora",
    "bias": "trained biases",
    "alora": "activated LoRA",
    "layer_replication": "replicated layers",
    "bdlora": "block-diagonal LoRA",
    "qalora": "QA-LoRA",
    "arrow": "an Arrow router",
    "kasa": "KaSA",
    "monteclora": "MonteCLoRA",
    "trainable_tokens": "single trained token embeddings",
    "target_parameters": "LoRA on bare parameters",
    "tied_lora": "LoRA tied between embeddings and output head, saved for one of them only",
    "modules_to_save": "modules trained in full",
    "unconverted_init": "PiSSA, OLoRA, CorDA or LoftQ as saved",
    "unknown_init": "an initialisation that the engine does not know",
    "unsafe_pattern": "a regular expression that could run forever",
    "bad_rank": "the rank is not a whole number above 0",
    "rank_too_large": "the rank is over the limit",
    "rank_mismatch": "the weights' rank is not the declared one",
    "bad_alpha": "alpha is not a number above 0",
    "unknown_tensor": "a tensor that is no part of a LoRA",
    "adapter_name_in_tensors": "tensor names that carry the adapter's name",
    "missing_pair": "lora_A without lora_B, or the other way round",
    "wrong_dtype": "LoRA weights in another type than F32, BF16, F16",
    "no_matching_module": "no module of the adapter exists in the base",
    "unknown_module": "a module that the base does not have",
    "undeclared_module": "weights for a module that target_modules does not cover",
    "extra_layers": "layers that the base does not have",
    "smaller_base": "trained on a smaller base",
    "larger_base": "trained on a larger base",
    "other_base": "trained on a base of another shape",
    "wrong_shape": "one tensor of the wrong shape",
    "full_weights": "whole weights beside the LoRA",
    "resized_embeddings": "embeddings with more or fewer tokens than the base's",
    "changed_embeddings": "embeddings or output head trained in full",
    "other_tokenizer": "another tokenizer than the base's",
    "bad_tokenizer": "a tokenizer file that cannot be read",
    "bad_chat_template": "a chat template that cannot be read or is too long",
    "bad_lineage": "onebase.json cannot be read",
    "other_base_weights": "trained on other weights of the same shape",
    "non_finite": "NaN or infinite values",
    "no_effect": "the weights change nothing",
}


@dataclass(frozen=True, slots=True)
class Checked:
    """An adapter that fits. `rank` is the highest of any module: what the engine must be able to hold."""

    folder: Path
    rank: int
    alpha: float
    scale: float
    use_rslora: bool
    target_modules: tuple[str, ...]
    parameters: int
    dtype: str
    base_verified: BaseStatus
    evidence: Evidence | None
    base_hint: str | None
    notes: tuple[str, ...]
    serving: Serving | None
    lineage: Mapping[str, Any]
    rewrite: Mapping[str, str] | None  # tensors to keep, old name -> new; None: the file as it is
    weights: TensorFile
    stamp: fingerprint.Stamp = field(repr=False)

    @property
    def kept(self) -> tuple[str, ...]:
        """The names of the files that `write` produces."""
        return (folder.CONFIG, folder.WEIGHTS)

    def write(self, into: Path) -> tuple[FileEntry, ...]:
        """Put the kept files into the empty folder `into`; Refused when the source has changed since."""
        shutil.copyfile(self.folder / folder.CONFIG, into / folder.CONFIG)
        if self.rewrite is None:
            shutil.copyfile(self.folder / folder.WEIGHTS, into / folder.WEIGHTS)
        else:
            tensors.rewrite(self.weights, into / folder.WEIGHTS, self.rewrite)
        if self.stamp != _stamp(self.folder):
            raise Refused(
                "changed_while_read",
                f"The files in {self.folder} changed while they were checked. Publish when they are "
                f"complete.",
            )
        entries = []
        for name in self.kept:
            path = into / name
            entries.append(FileEntry(path=name, sha256=disk.sha256_file(path), size=path.stat().st_size))
        return tuple(entries)


def check_folder(
    path: Path, base: BaseModel, *, max_rank: int | None = None, accept_base: bool = False
) -> Checked:
    """Check the adapter folder `path` against `base`.

    `max_rank` is the highest rank that will be served (the engine's own limit unless given); `accept_base`
    says that the adapter fits this base although nothing in it proves that.
    """
    try:
        return _check(path, base, max_rank, accept_base)
    except OSError as error:
        name = Path(str(error.filename or path)).name
        raise Refused(
            "unreadable",
            f"`{name}` cannot be read ({error.strerror or error}). Check its owner and permissions.",
        ) from error


def _check(path: Path, base: BaseModel, max_rank: int | None, accept_base: bool) -> Checked:
    limit = min(max_rank or MAX_RANK, MAX_RANK)
    files = folder.look_at(path, _largest(base))
    folder.require_parts(path, files)
    stamp = _stamp(path)
    config = lora_config.read(path / folder.CONFIG)
    if config.highest_rank > limit:
        raise Refused(
            "rank_too_large",
            f"The rank is {config.highest_rank}, and at most {limit} is served. Raise max_lora_rank (up to "
            f"{MAX_RANK}), train with a lower rank, or "
            f"{lora_tensors.MERGE[0].lower()}{lora_tensors.MERGE[1:]}.",
            param="r",
        )
    weights = _header(path / folder.WEIGHTS)
    layout = lora_tensors.arrange(weights, config, base)
    _check_tied(layout, config, base)
    _check_values(weights, layout)
    companions.check_tokenizer(path, base)
    proof = companions.trace_base(path, config.base_hint, base, accept_base=accept_base)
    serving = companions.serving(path, base)
    as_it_is = all(old == new for old, new in layout.names.items()) and not layout.stripped
    return Checked(
        folder=path,
        rank=max(config.highest_rank, *(pair.rank for pair in layout.pairs)),
        alpha=config.alpha,
        scale=config.scale,
        use_rslora=config.use_rslora,
        target_modules=tuple(sorted({pair.module.rpartition(".")[2] for pair in layout.pairs})),
        parameters=sum(_count(pair.a) + _count(pair.b) for pair in layout.pairs),
        dtype=_dtype(layout),
        base_verified=proof.status,
        evidence=proof.evidence,
        base_hint=proof.hint,
        notes=(*_notes(layout, config, as_it_is=as_it_is), *proof.notes),
        serving=serving,
        lineage=proof.lineage,
        rewrite=None if as_it_is else dict(layout.names),
        weights=weights,
        stamp=stamp,
    )


def _stamp(path: Path) -> fingerprint.Stamp:
    return fingerprint.stamp(path, [folder.CONFIG, folder.WEIGHTS])


def _largest(base: BaseModel) -> int:
    """No adapter of this base has more bytes: the highest rank everywhere in float32, and both embeddings."""
    factors = sum(rows + columns for rows, columns in base.modules.values()) * MAX_RANK * 4
    widest = max((rows * columns for rows, columns in base.modules.values()), default=0)
    return factors + 2 * widest * 4 + MAX_HEADER


def _header(path: Path) -> TensorFile:
    again = "Save or copy the adapter again."
    try:
        return tensors.read_header(path, MAX_HEADER)
    except tensors.EmptyFile as error:
        raise Refused("empty_weights", f"{path.name}: {error}. {again}", param=path.name) from None
    except tensors.TruncatedFile as error:
        raise Refused(
            "truncated_weights", f"{path.name} is cut off: {error}. {again}", param=path.name
        ) from None
    except tensors.MalformedFile as error:
        raise Refused(
            "bad_weights", f"{path.name} is not a safetensors file: {error}. {again}", param=path.name
        ) from None


def _check_tied(layout: Layout, config: LoraConfig, base: BaseModel) -> None:
    """peft can tie the LoRA of embeddings and output head and save it once; the engine keeps them apart."""
    ends = {pair.module.rpartition(".")[2] for pair in layout.pairs} & {"lm_head", *EMBEDDINGS}
    if config.ensure_weight_tying and len(ends) == 1 and base.config.get("tie_word_embeddings"):
        raise Refused(
            "tied_lora",
            f"ensure_weight_tying is set, and only `{ends.pop()}` is in the file, so the engine would leave "
            f"the other half out. {lora_tensors.MERGE}; or train with `ensure_weight_tying: false`.",
            param="ensure_weight_tying",
        )


def _check_values(weights: TensorFile, layout: Layout) -> None:
    """Finite everywhere, and at least one module whose B·A is not zero."""
    zero: set[str] = set()
    with weights.path.open("rb") as file:
        for name in layout.names:
            values = tensors.look_at(file, weights.tensors[name])
            if not values.finite:
                raise Refused(
                    "non_finite",
                    f"`{name}` holds NaN or infinite values, which would spoil other requests in the same "
                    "batch. The training diverged: use an earlier checkpoint, or a lower learning rate.",
                    param=name,
                )
            if values.zero:
                zero.add(name)
    if all(pair.a.name in zero or pair.b.name in zero for pair in layout.pairs):
        raise Refused(
            "no_effect",
            "Every lora_B (or lora_A) is zero, so the adapter changes nothing. It was saved before it was "
            "trained, or the wrong weights were saved.",
            param=folder.WEIGHTS,
        )


def _count(tensor: tensors.Tensor) -> int:
    return tensor.shape[0] * tensor.shape[1]


def _dtype(layout: Layout) -> str:
    """The widest type used."""
    used = {tensor.dtype for pair in layout.pairs for tensor in (pair.a, pair.b)}
    return next(dtype for dtype in lora_tensors.DTYPES if dtype in used)


def _notes(layout: Layout, config: LoraConfig, *, as_it_is: bool) -> tuple[str, ...]:
    notes = []
    if layout.stripped:
        notes.append(f"left out {', '.join(layout.stripped)}: equal to the base's")
    if not as_it_is and any(old != new for old, new in layout.names.items()):
        notes.append(f"tensor names were given peft's prefix `{lora_tensors.PREFIX}`")
    if config.rank_pattern or config.alpha_pattern:
        scales = {round(config.scale_of(pair.module), 6) for pair in layout.pairs}
        notes.append(f"rank or scale differ between modules (scales {sorted(scales)})")
    if not isinstance(config.target_modules, str):
        found = [pair.module for pair in layout.pairs]
        idle = [
            target
            for target in config.target_modules
            if not any(module == target or module.endswith(f".{target}") for module in found)
        ]
        if idle:
            notes.append(f"target_modules names {', '.join(idle)}, for which there are no weights")
    return tuple(notes)
