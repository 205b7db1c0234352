"""Writes a LoRA into its base: `merge(base, adapter_folder, output)` gives a full model for transformers and
vLLM.

This is also the way out for adapters that an engine cannot serve as they are (DoRA, saved modules): peft
knows how to merge each of them. What the merged model says equals adapter and base up to the rounding of the
sums.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from adapters.base import BaseModel
from adapters.fingerprint import Fingerprint
from training.checkpoints import need_space, read_json
from training.errors import MergeRefused
from training.model import open_model, quiet_transformers
from training.result import RECORD, public_name, versions, write_model

_WEIGHTS = "adapter_model.safetensors"


def merge(base: BaseModel, adapter_folder: Path, output: Path) -> Path:
    """The merged model in the base's own number format, with its tokenizer, chat template and generation
    config.
    """
    settings = _settings(adapter_folder)
    known = read_json(adapter_folder / RECORD)
    _check_base(base, adapter_folder, known)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise MergeRefused(f"{output} is not empty; choose another output folder", param="out")
    need_space(output, _bytes_of_weights(base), "the merged model")
    with quiet_transformers():
        merged = _merged(base, adapter_folder, settings)
        record = {
            "schema": 1,
            "method": "merged",
            "base": {"name": base.name, "source": public_name(base), "revision": base.revision},
            "versions": versions(),
            "adapter": (known or {}).get("lineage", {}),
        }
        write_model(merged, base, record, output)
    return output


def _merged(base: BaseModel, adapter_folder: Path, settings: dict[str, Any]) -> Any:
    import peft

    model = open_model(base.folder, torch.float32)
    if _touches_embeddings(settings):
        _untie(model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it warns of, `_check_complete` refuses
            adapted = peft.PeftModel.from_pretrained(model, str(adapter_folder))
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        first = str(error).strip().replace("\n\t", " ").partition("\n")[0]
        raise MergeRefused(f"{adapter_folder} does not fit {base.name}: {first}") from error
    _check_complete(adapted, adapter_folder, base)
    merged = adapted.merge_and_unload(safe_merge=True)
    return merged.to(
        getattr(torch, str(base.config.get("dtype") or base.config.get("torch_dtype") or "float32"))
    )


def _settings(folder: Path) -> dict[str, Any]:
    settings = read_json(folder / "adapter_config.json")
    if settings is None or not (folder / _WEIGHTS).is_file():
        raise MergeRefused(
            f"{folder} is not a peft adapter: adapter_config.json and {_WEIGHTS} are needed", param="adapter"
        )
    return settings


def _check_base(base: BaseModel, folder: Path, known: dict[str, Any] | None) -> None:
    if not known or "base_fingerprint" not in known:
        return
    trained_on = Fingerprint.from_json(known["base_fingerprint"])
    if trained_on.weights != base.fingerprint.weights:
        raise MergeRefused(
            f"{folder} was trained on a base with other weights ({known.get('base')}) than {base.name}; "
            "merge it into that one",
            param="base",
        )


def _check_complete(adapted: Any, folder: Path, base: BaseModel) -> None:
    """peft takes a file of which nothing fits without a word: every tensor must have found its place."""
    import peft
    from safetensors import safe_open

    with safe_open(str(folder / _WEIGHTS), framework="pt") as file:
        stored = set(file.keys())
    loaded = set(peft.get_peft_model_state_dict(adapted, save_embedding_layers=False))
    for name in sorted(stored ^ loaded):
        what = "has no place in" if name in stored else "is missing for"
        raise MergeRefused(f"{folder}: the tensor {name} {what} {base.name}; is this the adapter's base?")


def _touches_embeddings(settings: dict[str, Any]) -> bool:
    targets = settings.get("target_modules") or []
    saved = settings.get("modules_to_save") or []
    names = {str(name).rpartition(".")[2] for name in [*targets, *saved]}
    return bool(names & {"lm_head", "embed_tokens"})


def _untie(model: Any) -> None:
    """One matrix serves as embedding and as output head: a change to one must not change the other."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and head.weight is embedding.weight:
        head.weight = torch.nn.Parameter(embedding.weight.detach().clone())
        model.config.tie_word_embeddings = False


def _bytes_of_weights(base: BaseModel) -> int:
    return sum(path.stat().st_size for path in base.folder.glob("*.safetensors"))
