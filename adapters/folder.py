"""What may lie in an adapter's folder, before any file is read.

Only two files are ever served; companions that publishing tools leave beside them are tolerated, anything
that could be code or a pickle is not, and no link may lead out of the folder.
"""

from __future__ import annotations

import os
from pathlib import Path

from adapters.errors import Refused

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
LINEAGE = "onebase.json"

MAX_FILES = 200
MAX_COMPANION = 64 << 20  # bytes; the largest tokenizers have about half of that

_HARMLESS_SUFFIXES = {
    ".json", ".jsonl", ".md", ".txt", ".jinja", ".yaml", ".yml", ".toml",
    ".csv", ".log", ".png", ".jpg", ".svg",
}  # fmt: skip
_HARMLESS_NAMES = {
    ".gitattributes", ".gitignore", "LICENSE", "NOTICE", "README", "tokenizer.model", "spiece.model",
}  # fmt: skip
_HARMLESS_FOLDERS = {".git", ".cache"}
_PICKLED = ("adapter_model.bin", "adapter_model.pt", "pytorch_model.bin")


def look_at(folder: Path, max_weights: int) -> list[Path]:
    """The folder's files (not those in tool folders); raises Refused. `max_weights` in bytes."""
    if not folder.is_dir():
        raise Refused("missing_folder", f"{folder} is not a folder. Give the folder that holds {CONFIG}.")
    root = folder.resolve()
    files: list[Path] = []
    for path, is_folder in _walk(folder, root):
        relative = path.relative_to(folder).as_posix()
        if is_folder:
            raise Refused(
                "unexpected_folder",
                f"The folder holds a folder `{relative}`. Publish a folder that holds one adapter only "
                f"({CONFIG}, {WEIGHTS}), not a whole run with its checkpoints.",
                param=relative,
            )
        files.append(path)
        if len(files) > MAX_FILES:
            raise Refused(
                "too_many_files",
                f"The folder holds more than {MAX_FILES} files. An adapter is {CONFIG} and {WEIGHTS}; "
                "remove the rest.",
            )
        limit = max_weights if path.name == WEIGHTS else MAX_COMPANION
        size = path.stat().st_size
        if size > limit:
            raise Refused(
                "file_too_large",
                f"`{relative}` has {size} bytes, and at most {limit} fit an adapter of this base. "
                "Is it a whole model? Serve that as a base of its own.",
                param=relative,
            )
    if not files:
        raise Refused("empty_folder", f"The folder {folder} is empty. It should hold {CONFIG} and {WEIGHTS}.")
    return files


def _walk(folder: Path, root: Path) -> list[tuple[Path, bool]]:
    found: list[tuple[Path, bool]] = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda one: one.name):
            path = folder / entry.name
            if entry.is_symlink():
                # HF caches keep files as links; a copy without links is one command away.
                target = path.resolve()
                if not target.is_relative_to(root):
                    raise Refused(
                        "symlink_outside",
                        f"`{entry.name}` is a link that leaves the folder. Copy the folder with its contents "
                        f"(`cp -rL`) and publish the copy.",
                        param=entry.name,
                    )
                if not target.exists():
                    raise Refused(
                        "broken_symlink", f"`{entry.name}` is a link to nothing. Remove it.", param=entry.name
                    )
            if entry.is_dir():
                if entry.name not in _HARMLESS_FOLDERS:
                    found.append((path, True))
            elif entry.is_file():
                found.append((path, False))
            else:
                raise Refused(
                    "unexpected_file",
                    f"`{entry.name}` is neither a file nor a folder. Remove it.",
                    param=entry.name,
                )
    return found


def require_parts(folder: Path, files: list[Path]) -> None:
    """The two files must be there, and nothing that could be code or a pickle."""
    names = {path.name for path in files}
    if CONFIG not in names:
        if "config.json" in names and any(name.endswith(".safetensors") for name in names):
            raise Refused(
                "full_model",
                f"{folder} holds a whole model (config.json), not an adapter ({CONFIG}). Serve it as a base: "
                f"`onebase serve {folder}`.",
                param=CONFIG,
            )
        raise Refused(
            "missing_config",
            f"{CONFIG} is missing in {folder}. peft writes it: `model.save_pretrained(folder)`.",
            param=CONFIG,
        )
    if WEIGHTS not in names:
        pickled = [name for name in _PICKLED if name in names]
        if pickled:
            raise Refused(
                "pickled_weights",
                f"The weights are only there as `{pickled[0]}`, a pickle, which can run code when it is "
                f"read; OneBase never opens one. Save them as {WEIGHTS}: load the adapter with peft where "
                "you trust it, then `model.save_pretrained(folder, safe_serialization=True)`.",
                param=pickled[0],
            )
        raise Refused(
            "missing_weights",
            f"{WEIGHTS} is missing in {folder}. peft writes it: `model.save_pretrained(folder)`.",
            param=WEIGHTS,
        )
    for path in files:
        name = path.name
        if name == WEIGHTS or name in _HARMLESS_NAMES or path.suffix.lower() in _HARMLESS_SUFFIXES:
            continue
        raise Refused(
            "unexpected_file",
            f"`{name}` does not belong to an adapter (it may be code, a pickle or other weights). Remove "
            f"it, and publish {CONFIG} and {WEIGHTS} only.",
            param=name,
        )
