"""The run folder: what a training run leaves on disk while it runs, sound at every moment.

    RUN/run.json             what this run is (config, data, base): a different run is refused
    RUN/config.json          the effective config
    RUN/metrics.jsonl        one line a step and an evaluation
    RUN/checkpoints/step-N   weights, optimiser, random states; counts only with its `complete` mark
    RUN/best/                the weights with the best held-out loss so far, and best.json
    RUN/before.json          scores and answers of the base
    RUN/adapter or RUN/model the result, put in place whole; RUN/report.json closes the run

A checkpoint is marked after its files are on the disk, so that a kill in between leaves the one before it.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters import disk
from training.errors import NoDiskSpace, RunMismatch

_MARK = "complete"
_PREFIX = "step-"


@dataclass(frozen=True, slots=True)
class Best:
    step: int
    loss: float


@dataclass(frozen=True, slots=True)
class RunFolder:
    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def best(self) -> Path:
        return self.path / "best"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def report(self) -> Path:
        return self.path / "report.json"

    def open(self, identity: dict[str, Any], *, resume: bool) -> None:
        """Take the folder for this run. Someone else's files are never touched; another run's only on
        request.
        """
        known = read_json(self.path / "run.json")
        if known is None:
            if self.path.is_dir() and any(self.path.iterdir()):
                raise RunMismatch(
                    f"{self.path} is not empty and not a training run; choose another --out",
                    param="out",
                )
        elif not resume:
            shutil.rmtree(self.path)
        elif known != identity:
            raise RunMismatch(
                f"{self.path} holds another run: {_differences(known, identity)}; choose another --out, "
                "or start over with --no-resume (it deletes what is there)",
                param="out",
            )
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / "run.json", identity)

    def latest(self) -> Path | None:
        """The newest complete checkpoint. Half-written ones are cleared away."""
        complete = []
        for folder in self.checkpoints.glob(f"{_PREFIX}*"):
            if (folder / _MARK).is_file():
                complete.append(folder)
            else:
                shutil.rmtree(folder)
        return max(complete, key=step_of, default=None)

    def mark(self, folder: Path) -> None:
        """Declare a checkpoint complete, then drop the older ones."""
        disk.sync_tree(folder)
        disk.write_file(folder / _MARK, b"")
        disk.sync_folder(folder)
        disk.sync_folder(folder.parent)
        for other in self.checkpoints.glob(f"{_PREFIX}*"):
            if other != folder:
                shutil.rmtree(other)

    def forget_after(self, step: int) -> None:
        """Drop metrics of steps that will be run again."""
        if not self.metrics.is_file():
            return
        kept = []
        for line in self.metrics.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError):
                continue  # the line that a kill cut short
        disk.replace_file(self.metrics, "".join(kept).encode())

    def clear_working_files(self) -> None:
        """After the result is in place, nothing needs the checkpoints."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        shutil.rmtree(self.best, ignore_errors=True)


def checkpoint_folder(run: RunFolder, step: int) -> Path:
    return run.checkpoints / f"{_PREFIX}{step}"


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix(_PREFIX))


def read_json(path: Path) -> dict[str, Any] | None:
    """None where the file is missing or was cut short."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_json(path: Path, value: dict[str, Any]) -> None:
    disk.replace_file(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def need_space(folder: Path, needed: int, what: str) -> None:
    """Refuse before anything is computed when the disk cannot hold the outcome."""
    there = folder
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < needed:
        raise NoDiskSpace(str(folder), needed, free, what)


def _differences(known: dict[str, Any], wanted: dict[str, Any]) -> str:
    """The first few fields that differ, as paths with both values."""
    before, after = _flat(known), _flat(wanted)
    found = [
        f"{path} was {before.get(path, 'unset')!r}, is {after.get(path, 'unset')!r}"
        for path in sorted({*before, *after})
        if before.get(path) != after.get(path)
    ]
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


def _flat(value: dict[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict):
            flat.update(_flat(item, f"{above}{key}."))
        else:
            flat[above + key] = item
    return flat
