"""What this package does with a local file system: hash, write through to the disk, replace a folder.

Knows nothing of adapters or models. Errors are OSError; callers name what they were doing (`explain`).
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

_FULL = {errno.ENOSPC, errno.EDQUOT}
CHUNK = 4 << 20


def sha256_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """Hex SHA-256 of a file; `progress` gets the number of bytes read since its last call."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            if progress is not None:
                progress(len(chunk))
    return digest.hexdigest()


def write_file(path: Path, data: bytes) -> None:
    """Write a new file and do not return before it is on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """Put `data` at `path` so that a reader sees the old or the new content, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        write_file(temporary, data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Make the entries of a folder durable (POSIX; elsewhere a folder cannot be opened, nor need be)."""
    if os.name == "posix":
        sync_file(path)


def sync_tree(folder: Path) -> None:
    """Every file and folder below, then the folder itself."""
    for root, _, files in os.walk(folder, topdown=False):
        for name in files:
            sync_file(Path(root, name))
        sync_folder(Path(root))


def make_folders(path: Path, below: Path) -> None:
    """Create `path` (inside `below`) and make each new step durable."""
    missing: list[Path] = []
    step = path
    while step != below and not step.is_dir():
        missing.append(step)
        step = step.parent
    below.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def move_folder(source: Path, target: Path) -> None:
    """Put a finished folder in place; whatever was at `target` is moved aside first, then deleted."""
    sync_tree(source)
    aside: Path | None = None
    if target.exists() or target.is_symlink():
        aside = target.with_name(f".old-{target.name}-{uuid.uuid4().hex}")
        target.rename(aside)
    source.rename(target)
    sync_folder(target.parent)
    if aside is not None:
        shutil.rmtree(aside, ignore_errors=True)


def sweep_folders(parent: Path, older_than: float, prefix: str = "") -> None:
    """Remove the folders in `parent` that a process which died has left there."""
    limit = time.time() - older_than
    for path in parent.iterdir():
        if path.name.startswith(prefix) and path.is_dir() and path.stat().st_mtime <= limit:
            shutil.rmtree(path, ignore_errors=True)


def files_below(folder: Path) -> Iterator[Path]:
    for root, _, files in os.walk(folder):
        for name in files:
            yield Path(root, name)


def is_full(error: OSError) -> bool:
    return error.errno in _FULL


def explain(error: OSError, doing: str) -> str:
    """One sentence for an OSError, with the mend where there is an obvious one."""
    what = os.strerror(error.errno) if error.errno else str(error)
    if is_full(error):
        return f"No space left while {doing}. Free some space, or point ONEBASE_HOME at a larger disk."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"Not permitted ({what}) while {doing}. Check who owns the folder and whether it is writable."
    return f"{what} while {doing}."
