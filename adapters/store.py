"""Where the registry's objects are kept: append-only, create-if-absent, whole or not there.

Keys are paths with `/`:
    blobs/sha256/ab/<64 hex>                         a file's bytes
    names/<name, "/" as "~">/version~000003.json     one immutable manifest
    names/<name>/alias~production~000001.json        one move of an alias
    names/<name>/retired~000003~000001.json          one hiding or showing of a version

Nothing is overwritten. The one writing primitive, `put_if_absent`, also exists on S3, GCS and Azure, so that
an object store can stand behind the same protocol. What an object means is not known here.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
import uuid
from collections.abc import Hashable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from filelock import FileLock

from adapters import disk
from adapters.errors import StoreCorrupt, StoreFull, StoreProblem, StoreUnreachable

Keys = list[str]
Entries = list[tuple[str, bool]]  # name, is it a folder

# A folder changed this recently may change again without a new time stamp: some file systems keep whole
# seconds, and the clock of others ticks in milliseconds.
_SETTLED_NS = 2_000_000_000
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS}
STALE_SECONDS = 3600.0


class Store(Protocol):
    """What the registry needs of a store."""

    def put_if_absent(self, key: str, data: bytes | Path) -> bool:
        """Write an object durably unless the key is taken; False when it is. A Path's file is copied."""

    def get(self, key: str) -> bytes:
        """The whole object; StoreCorrupt when it is not there (nothing is ever deleted under a reader)."""

    def path(self, key: str) -> Path | None:
        """The object as a local file, when the store has it as one."""

    def exists(self, key: str) -> bool: ...

    def change_token(self, prefix: str) -> Hashable | None:
        """A value that changes when an object appears directly under `prefix`; None: look yourself."""

    def folders(self, prefix: str) -> Keys:
        """The names one level below `prefix` that have something below them."""

    def list(self, prefix: str) -> Keys:
        """The keys directly under `prefix`, sorted."""


class LocalStore:
    """A store in a folder of a local (or shared POSIX) file system."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._incoming = root / "incoming"

    def put_if_absent(self, key: str, data: bytes | Path) -> bool:
        target = self._at(key)
        try:
            if target.exists():
                # Its writer may not have flushed the folder yet, and we build on it.
                disk.sync_folder(target.parent)
                return False
            disk.make_folders(target.parent, below=self.root)
            disk.make_folders(self._incoming, below=self.root)
            temporary = self._incoming / f"{os.getpid()}-{uuid.uuid4().hex}"
            try:
                self._write(temporary, data)
                created = self._link(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)
            disk.sync_folder(target.parent)
        except OSError as error:
            raise _problem(error, f"writing {key} to the registry in {self.root}") from error
        return created

    def _write(self, temporary: Path, data: bytes | Path) -> None:
        with temporary.open("xb") as file:
            if isinstance(data, Path):
                with data.open("rb") as source:
                    shutil.copyfileobj(source, file, disk.CHUNK)
            else:
                file.write(data)
            file.flush()
            temporary.chmod(0o444)
            os.fsync(file.fileno())

    def _link(self, temporary: Path, target: Path) -> bool:
        """Give the finished file its name; the one step that decides between two writers."""
        try:
            target.hardlink_to(temporary)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            with FileLock(self.root / ".rename.lock"):  # a file system without hard links
                if target.exists():
                    return False
                temporary.rename(target)
        return True

    def get(self, key: str) -> bytes:
        try:
            return self._at(key).read_bytes()
        except FileNotFoundError:
            raise StoreCorrupt(key, f"is missing in {self.root}", "Restore it from a backup.") from None
        except OSError as error:
            raise _problem(error, f"reading {key} from the registry in {self.root}") from error

    def path(self, key: str) -> Path | None:
        return self._at(key)

    def exists(self, key: str) -> bool:
        return self._at(key).exists()

    def change_token(self, prefix: str) -> Hashable | None:
        try:
            status = os.stat(f"{self.root}/{prefix}")  # noqa: PTH116 - on the path of every request
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise _problem(error, f"looking at {prefix} in the registry in {self.root}") from error
        changed = status.st_mtime_ns
        if not time.time_ns() - _SETTLED_NS - changed >= 0:
            return None
        return changed, status.st_ino

    def folders(self, prefix: str) -> Keys:
        return sorted(name for name, is_folder in self._entries(prefix) if is_folder)

    def list(self, prefix: str) -> Keys:
        start = prefix.rstrip("/")
        return sorted(f"{start}/{name}" for name, is_folder in self._entries(prefix) if not is_folder)

    def _entries(self, prefix: str) -> Entries:
        try:
            with os.scandir(self.root / prefix) as entries:
                return [(entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith(".")]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _problem(error, f"listing {prefix} of the registry in {self.root}") from error

    def sweep(self, older_than: float = STALE_SECONDS) -> int:
        """Delete what writers that died left behind; returns how many files. Objects are never touched."""
        swept = 0
        limit = time.time() - older_than
        try:
            for name, _ in self._entries("incoming"):
                entry = self._incoming / name
                with suppress(FileNotFoundError):  # its writer was faster
                    if entry.stat().st_mtime <= limit:
                        entry.unlink()
                        swept += 1
        except OSError as error:
            raise _problem(error, f"sweeping {self._incoming}") from error
        return swept

    def _at(self, key: str) -> Path:
        return self.root / key


def _problem(error: OSError, doing: str) -> StoreProblem:
    kind = StoreFull if disk.is_full(error) else StoreUnreachable
    return kind(disk.explain(error, doing))
