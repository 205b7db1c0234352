"""The registry: publish, resolve, alias, roll back, retire. Records in a store, nothing else.

A name's versions are numbered from 1; which number a publisher gets is decided by the store's
create-if-absent, so any number of processes may publish and move aliases at once. `resolve` looks at the
store's change token on every call: what another process published is found at once, and a name whose folder
has not changed costs one `stat`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from adapters import disk
from adapters.base import BaseModel
from adapters.check import CHECKS, Checked, check_folder
from adapters.errors import Conflict, StoreCorrupt, StoreFull, StoreUnreachable
from adapters.manifest import (
    BaseRecord,
    FileEntry,
    LoraRecord,
    Manifest,
    Proof,
    ProofLevel,
    Serving,
    content_digest,
    read_serving,
)
from adapters.materialize import Materializer, blob_key
from adapters.moves import Moves, now_utc, refuse_twin
from adapters.ref import MAX_VERSION, Ref, check_alias, check_name, parse_ref
from adapters.shelf import PRODUCTION, Shelf, name_of, version_key
from adapters.store import STALE_SECONDS, LocalStore, Store

__all__ = ["PRODUCTION", "Registry", "fits"]


def fits(manifest: Manifest, base: BaseModel) -> bool:
    """Was this version checked against this very base? The chat template may differ."""
    return set(manifest.base.fingerprint.differences(base.fingerprint)) <= {"chat_template"}


class Registry(Moves):
    """All names and versions of one store; safe to share between threads and processes."""

    def __init__(self, store: Store, *, cache: Path) -> None:
        super().__init__(store)
        self.cache = cache
        self._materializer = Materializer(store, cache / "adapters")

    def resolve(self, reference: str | Ref) -> Manifest:
        """The exact version that `reference` means now.

        Raises UnknownAdapter (with the nearest names), UnknownVersion, UnknownAlias or Retired.
        """
        ref = reference if isinstance(reference, Ref) else parse_ref(reference)
        return self._shelf(ref.name).resolve(ref)

    def names(self) -> list[str]:
        """Every name that has a version, retired ones included."""
        found = (name_of(folder) for folder in self.store.folders("names"))
        return [name for name in found if self._current(name).versions]

    def versions(self, name: str) -> list[Manifest]:
        """All versions, oldest first, retired ones included (`retired_versions` says which)."""
        shelf = self._shelf(name)
        return [shelf.manifest(number) for number in shelf.versions]

    def models_for(self, base: BaseModel) -> list[str]:
        """The names that have a version for this base which is not retired."""
        return [name for name in self.names() if self._serves(self._current(name), base)]

    def materialize(self, manifest: Manifest) -> Path:
        """A local folder with the version's files, verified; StoreCorrupt names a damaged blob."""
        return self._materializer.folder(manifest)

    def publish(
        self,
        name: str,
        folder: Path,
        base: BaseModel,
        *,
        by: str | None = None,
        why: str = "",
        alias: str | None = None,
        lineage: Mapping[str, Any] | None = None,
        scores: Mapping[str, Any] | None = None,
        serving: Mapping[str, Any] | Serving | None = None,
        accept_base: bool = False,
        max_rank: int | None = None,
        level: ProofLevel = "static",
        numbers: Mapping[str, Any] | None = None,
    ) -> Manifest:
        """Check the folder and make it the name's next version; Refused, Conflict, StoreProblem.

        Content equal to the newest version's is not published again: that version is returned. `serving`
        replaces what the folder itself asks for; `numbers` is what was measured for `level`.
        """
        self._check_free(check_name(name), base)
        if alias is not None:
            check_alias(alias)
        asked = read_serving(dict(serving) if isinstance(serving, Mapping) else serving)
        checked = check_folder(folder, base, max_rank=max_rank, accept_base=accept_base)
        chosen = asked if asked is not None else checked.serving
        files = self._keep_files(checked)
        digest = content_digest("lora", files, base.fingerprint, chosen)

        def manifest(version: int) -> Manifest:
            return Manifest(
                name=name,
                version=version,
                digest=digest,
                files=files,
                base=_base_record(base, checked),
                lora=_lora_record(checked),
                proof=Proof(level=level, checks=CHECKS, numbers=dict(numbers or {})),
                scores=dict(scores or {}),
                lineage=dict(lineage if lineage is not None else checked.lineage),
                serving=chosen,
                notes=checked.notes,
                by=by,
                at=now_utc(),
                why=why,
            )

        published = self._append_version(name, digest, manifest)
        if alias is not None:
            self.set_alias(name, alias, published.version, by=by, why=why)
        return published

    @staticmethod
    def _serves(shelf: Shelf, base: BaseModel) -> bool:
        for number in reversed(shelf.visible()):
            try:
                if fits(shelf.manifest(number), base):
                    return True
            except StoreCorrupt:
                continue  # one damaged manifest must not hide the other names
        return False

    def _check_free(self, name: str, base: BaseModel) -> None:
        reserved = {one.lower() for one in base.names}
        if name.lower() in reserved:
            raise Conflict(
                f"name `{name}` means the base model itself. Choose another name for the adapter.",
                code="reserved_name",
                param="name",
            )
        refuse_twin("name", name, (name_of(one) for one in self.store.folders("names")))

    def _keep_files(self, checked: Checked) -> tuple[FileEntry, ...]:
        """Put the files into the store, by their hashes."""
        if isinstance(self.store, LocalStore):
            self.store.sweep()
        staging = self.cache / "staging"
        try:
            staging.mkdir(parents=True, exist_ok=True)
            disk.sweep_folders(staging, STALE_SECONDS)
            with tempfile.TemporaryDirectory(dir=staging) as folder:
                files = checked.write(Path(folder))
                for entry in files:
                    self._put_blob(entry, Path(folder, entry.path))
        except OSError as error:
            problem = StoreFull if disk.is_full(error) else StoreUnreachable
            raise problem(disk.explain(error, f"staging an adapter in {staging}")) from error
        return files

    def _put_blob(self, entry: FileEntry, source: Path) -> None:
        if not self.store.put_if_absent(blob_key(entry.sha256), source):
            self._materializer.verify_blob(entry)

    def _append_version(self, name: str, digest: str, make: Callable[[int], Manifest]) -> Manifest:
        while True:
            shelf = self._fresh(name)
            newest = shelf.versions[-1] if shelf.versions else 0
            if newest and newest not in shelf.retired and _digest(shelf, newest) == digest:
                return shelf.manifest(newest)
            if newest >= MAX_VERSION:
                raise Conflict(
                    f"`{name}` has used up its {MAX_VERSION} versions.", code="too_many", param="name"
                )
            manifest = make(newest + 1)
            if self.store.put_if_absent(version_key(name, newest + 1), manifest.to_bytes()):
                return self._fresh(name).manifest(newest + 1)  # as it is stored


def _digest(shelf: Shelf, version: int) -> str | None:
    """None when the stored manifest is damaged: that must not keep a new version from being published."""
    try:
        return shelf.manifest(version).digest
    except StoreCorrupt:
        return None


def _base_record(base: BaseModel, checked: Checked) -> BaseRecord:
    return BaseRecord(
        name=base.name,
        source=base.source,
        revision=base.revision,
        fingerprint=base.fingerprint,
        status=checked.base_verified,
        evidence=checked.evidence,
        hint=checked.base_hint,
    )


def _lora_record(checked: Checked) -> LoraRecord:
    return LoraRecord(
        rank=checked.rank,
        alpha=checked.alpha,
        scale=checked.scale,
        use_rslora=checked.use_rslora,
        target_modules=checked.target_modules,
        parameters=checked.parameters,
        dtype=checked.dtype,
    )
