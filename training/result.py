"""The outcome of a run: the folder of weights, put in place whole, and the lineage that goes with it.

A LoRA folder is a clean peft folder (adapter_config.json, adapter_model.safetensors) and `onebase.json`,
whose `base_fingerprint` lets the registry verify the base by its weights. A full model is a folder that
transformers and vLLM load. Neither names a path of this machine.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from adapters import disk
from adapters.base import BaseModel
from training.checkpoints import read_json, write_json
from training.config import TrainConfig

RECORD = "onebase.json"
Kind = Literal["lora", "full"]
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
_OWN = ("config.json", RECORD)


@dataclass(frozen=True, slots=True)
class TrainResult:
    """`folder` is what can be published or served; `scores` has `before` and `after`."""

    folder: Path
    kind: Kind
    scores: dict[str, dict[str, float]]
    lineage: dict[str, Any]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {
            "folder": self.folder.name,
            "kind": self.kind,
            "scores": self.scores,
            "seconds": self.seconds,
            "lineage": self.lineage,
        }


def read_result(run_folder: Path) -> TrainResult | None:
    """The result of a finished run, or None while it is not finished."""
    record = read_json(run_folder / "report.json")
    if record is None or not (run_folder / record["folder"]).is_dir():
        return None
    return TrainResult(
        run_folder / record["folder"], record["kind"], record["scores"], record["lineage"], record["seconds"]
    )


def lineage(
    config: TrainConfig, base: BaseModel, data: dict[str, Any], facts: dict[str, Any]
) -> dict[str, Any]:
    """Where a result comes from: enough to make it again."""
    effective = config.effective()
    effective["model"] = public_name(base)
    for part in ("train", "eval"):
        source = effective["data"].get(part)
        if source and "file" in source:
            source["file"] = (
                Path(source["file"]).name if Path(source["file"]).is_absolute() else source["file"]
            )
    text = json.dumps(effective, sort_keys=True, ensure_ascii=False)
    return {
        "schema": 1,
        "method": config.method,
        "base": {
            "name": base.name,
            "source": public_name(base),
            "revision": base.revision,
            "fingerprint": base.fingerprint.to_json(),
        },
        "data": data,
        "config": effective,
        "config_sha256": f"sha256:{hashlib.sha256(text.encode()).hexdigest()}",
        "seed": config.optimiser.seed,
        "versions": versions(),
        **facts,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("onebase", "torch", "transformers", "peft", "accelerate"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def public_name(base: BaseModel) -> str:
    """A name that means the same base on another machine: a hub id where one is known, never a path."""
    names = [alias for alias in base.aliases if not _is_path(alias)]
    hub = [name for name in names if "/" in name]
    if hub:
        return hub[0]
    source = base.source.partition("@")[0]
    return source if source.count("/") == 1 and not _is_path(source) else base.name


def _is_path(text: str) -> bool:
    return text.startswith((".", "/", "~")) or "\\" in text or Path(text).exists()


def write_adapter(model: Any, base: BaseModel, record: dict[str, Any], target: Path) -> None:
    staging = _staging(target)
    model.save_pretrained(staging, save_embedding_layers=False)
    settings = json.loads((staging / "adapter_config.json").read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = public_name(base)
    settings["revision"] = base.revision
    # peft keeps them in a set: sorted, the same training writes the same bytes.
    settings["target_modules"] = sorted(settings["target_modules"])
    write_json(staging / "adapter_config.json", settings)
    write_json(staging / RECORD, _record(base, record))
    disk.move_folder(staging, target)


def write_model(model: Any, base: BaseModel, record: dict[str, Any], target: Path) -> None:
    """A full model with everything else of the base's folder: tokenizer, chat template, generation config."""
    staging = _staging(target)
    model.save_pretrained(staging)
    copy_companions(base.folder, staging)
    settings = json.loads((staging / "config.json").read_text(encoding="utf-8"))
    settings.pop("_name_or_path", None)
    write_json(staging / "config.json", settings)
    write_json(staging / RECORD, _record(base, record))
    disk.move_folder(staging, target)


def copy_companions(base_folder: Path, target: Path) -> None:
    """The base's small files as they are: a tokenizer that is saved anew is not the same bytes."""
    for path in sorted(base_folder.iterdir()):
        weights = path.suffix in _WEIGHTS or path.name.endswith(".index.json")
        if path.is_file() and not path.name.startswith(".") and not weights and path.name not in _OWN:
            shutil.copyfile(path, target / path.name)


def _record(base: BaseModel, lineage: dict[str, Any]) -> dict[str, Any]:
    return {
        "schema": 1,
        "base": public_name(base),
        "base_fingerprint": base.fingerprint.to_json(),
        "lineage": lineage,
    }


def _staging(target: Path) -> Path:
    staging = target.with_name(f".{target.name}.writing")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    return staging
