"""A version's files as a folder on this machine, for the engine to load.

The folder is named after the content, appears whole or not at all, and is verified against the manifest: when
it is made, when a process meets it for the first time, and again whenever a file in it has changed. Files are
hard links into a local store where possible, so that a hundred versions cost their disk space once.
"""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

from filelock import FileLock

from adapters import disk, fingerprint
from adapters.errors import StoreCorrupt, StoreFull, StoreUnreachable
from adapters.manifest import FileEntry, Manifest
from adapters.store import STALE_SECONDS, Store

_MEND = "Delete that file and publish the same folder again, or restore it from a backup."


def blob_key(sha256: str) -> str:
    return f"blobs/sha256/{sha256[:2]}/{sha256}"


class Materializer:
    """Folders below `cache`, one per digest; safe between threads and processes."""

    def __init__(self, store: Store, cache: Path) -> None:
        self.store = store
        self.cache = cache
        self._seen: dict[str, fingerprint.Stamp] = {}

    def folder(self, manifest: Manifest) -> Path:
        digest = manifest.digest.removeprefix("sha256:")
        target = self.cache / digest
        names = [file.path for file in manifest.files]
        known = self._seen.get(digest)
        try:
            if known is not None and known == _stamp(target, names):
                return target
            stamp = self._verified(target, manifest)
            if stamp is None:
                self.cache.mkdir(parents=True, exist_ok=True)
                with FileLock(self.cache / f".{digest[:2]}.lock"):
                    stamp = self._verified(target, manifest)
                    if stamp is None:
                        stamp = self._make(target, manifest)
        except OSError as error:
            problem = StoreFull if disk.is_full(error) else StoreUnreachable
            raise problem(disk.explain(error, f"preparing {manifest.ref} in {self.cache}")) from error
        self._seen[digest] = stamp
        return target

    def verify_blob(self, entry: FileEntry) -> None:
        """StoreCorrupt when the stored bytes are not those that the entry names."""
        key = blob_key(entry.sha256)
        path = self.store.path(key)
        if path is None:
            found = disk.sha256_bytes(self.store.get(key))
        elif path.is_file():
            found = disk.sha256_file(path)
        else:
            raise StoreCorrupt(key, f"(the file {entry.path} of a version) is missing", _MEND)
        if found != entry.sha256:
            raise StoreCorrupt(
                key, f"(the file {entry.path} of a version) is damaged: it has SHA-256 {found}", _MEND
            )

    def _verified(self, target: Path, manifest: Manifest) -> fingerprint.Stamp | None:
        """The folder's stamp when every file is there and has its hash."""
        stamp = _stamp(target, [file.path for file in manifest.files])
        if stamp is None:
            return None
        for file in manifest.files:
            path = target / file.path
            if path.stat().st_size != file.size or disk.sha256_file(path) != file.sha256:
                return None
        return stamp

    def _make(self, target: Path, manifest: Manifest) -> fingerprint.Stamp:
        disk.sweep_folders(self.cache, STALE_SECONDS, prefix=".")
        building = self.cache / f".new-{uuid.uuid4().hex}"
        building.mkdir()
        try:
            for file in manifest.files:
                self._place(file, building / file.path)
            disk.move_folder(building, target)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        return fingerprint.stamp(target, [file.path for file in manifest.files])

    def _place(self, file: FileEntry, target: Path) -> None:
        self.verify_blob(file)
        key = blob_key(file.sha256)
        source = self.store.path(key)
        if source is None:
            disk.write_file(target, self.store.get(key))
            return
        try:
            target.hardlink_to(source)
        except OSError as error:  # another file system, or one without links
            if disk.is_full(error):
                raise
            shutil.copyfile(source, target)
            if disk.sha256_file(target) != file.sha256:
                raise StoreCorrupt(key, "changed while it was copied", _MEND) from None


def _stamp(target: Path, names: list[str]) -> fingerprint.Stamp | None:
    try:
        return fingerprint.stamp(target, names)
    except FileNotFoundError:
        return None
