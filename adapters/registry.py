"""The registry: publish, resolve, alias, roll back, retire. Records in a store, nothing else.

A name's versions are numbered from 1; which number a publisher gets is decided by the store's
create-if-absent, so any number of processes may publish and move aliases at once. `resolve` looks at the
store's change token on every call: what another process published is found at once, and a name whose folder
has not changed costs one `stat`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from adapters import disk
from adapters.base import BaseModel
from adapters.check import CHECKS, Checked, check_folder
from adapters.errors import Conflict, StoreFull, StoreUnreachable, UnknownAdapter, UnknownAlias
from adapters.manifest import (
    AliasEntry,
    BaseRecord,
    FileEntry,
    LoraRecord,
    Manifest,
    Proof,
    ProofLevel,
    RetireEntry,
    Serving,
    Target,
    content_digest,
    read_serving,
)
from adapters.materialize import Materializer, blob_key
from adapters.ref import MAX_VERSION, Ref, check_alias, check_name, nearest, parse_ref
from adapters.shelf import (
    PRODUCTION,
    Shelf,
    alias_key,
    folder_of,
    name_of,
    read_record,
    read_shelf,
    retired_key,
    version_key,
)
from adapters.store import LocalStore, Store

__all__ = ["PRODUCTION", "Registry", "fits"]


def fits(manifest: Manifest, base: BaseModel) -> bool:
    """Was this version checked against this very base? The chat template may differ."""
    return set(manifest.base.fingerprint.differences(base.fingerprint)) <= {"chat_template"}


class Registry:
    """All names and versions of one store; safe to share between threads."""

    def __init__(self, store: Store, *, cache: Path) -> None:
        self.store = store
        self.cache = cache
        self._shelves: dict[str, Shelf] = {}
        self._materializer = Materializer(store, cache / "adapters")

    # Reading ---------------------------------------------------------------------------------------------

    def resolve(self, reference: str | Ref) -> Manifest:
        """The exact version that `reference` means now; UnknownAdapter, UnknownVersion, UnknownAlias, Retired."""
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

    def retired_versions(self, name: str) -> dict[int, RetireEntry]:
        return dict(self._shelf(name).retired)

    def aliases(self, name: str) -> dict[str, AliasEntry]:
        return dict(self._shelf(name).aliases())

    def history(self, name: str, alias: str) -> list[AliasEntry]:
        """Every move of an alias, oldest first."""
        shelf = self._shelf(name)
        last = shelf.alias_seqs.get(check_alias(alias))
        if last is None:
            raise UnknownAlias(name, alias, sorted(shelf.aliases()))
        keys = (alias_key(name, alias, seq) for seq in range(1, last + 1))
        return [read_record(self.store, key, AliasEntry) for key in keys]

    def models_for(self, base: BaseModel) -> list[str]:
        """The names that have a version for this base which is not retired."""
        chosen = []
        for name in self.names():
            shelf = self._current(name)
            if any(fits(shelf.manifest(number), base) for number in reversed(shelf.visible())):
                chosen.append(name)
        return chosen

    def materialize(self, manifest: Manifest) -> Path:
        """A local folder with the version's files, verified; StoreCorrupt names a damaged blob."""
        return self._materializer.folder(manifest)

    # Writing ---------------------------------------------------------------------------------------------

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
                at=_now(),
                why=why,
            )

        published = self._append_version(name, digest, manifest)
        if alias is not None:
            self.set_alias(name, alias, published.version, by=by, why=why)
        return published

    def set_alias(
        self, name: str, alias: str, version: int, *, by: str | None = None, why: str = ""
    ) -> AliasEntry:
        """Point an alias at a version; already there: its entry is returned and nothing is written."""
        check_alias(alias)

        def entry(shelf: Shelf, seq: int) -> AliasEntry | None:
            shelf.resolve(Ref(name, version=version))  # it exists and is not retired
            _refuse_twin("alias", alias, shelf.alias_seqs)
            targets = (Target(version=version),)
            now = shelf.aliases().get(alias)
            if now is not None and now.targets == targets:
                return None
            return AliasEntry(seq=seq, targets=targets, by=by, at=_now(), why=why)

        return self._append_alias(name, alias, entry)

    def drop_alias(self, name: str, alias: str, *, by: str | None = None, why: str = "") -> AliasEntry:
        """Make an alias lead nowhere; its history stays."""
        check_alias(alias)

        def entry(shelf: Shelf, seq: int) -> AliasEntry:
            if alias not in shelf.aliases():
                raise UnknownAlias(name, alias, sorted(shelf.aliases()))
            return AliasEntry(seq=seq, targets=(), by=by, at=_now(), why=why)

        return self._append_alias(name, alias, entry)

    def rollback(
        self, name: str, alias: str = PRODUCTION, *, by: str | None = None, why: str = ""
    ) -> AliasEntry:
        """Point an alias where it led before its last move, as a new entry (twice leads back again)."""
        check_alias(alias)

        def entry(shelf: Shelf, seq: int) -> AliasEntry:
            if alias not in shelf.aliases():
                raise UnknownAlias(name, alias, sorted(shelf.aliases()))
            history = self.history(name, alias)
            current = history[-1].targets
            earlier = [one for one in reversed(history) if one.targets and one.targets != current]
            if not earlier:
                raise Conflict(
                    f"The alias `{alias}` of `{name}` has never led anywhere else than to version "
                    f"{history[-1].version}, so there is nothing to roll back to.",
                    code="nothing_to_roll_back",
                    param="alias",
                )
            for target in earlier[0].targets:
                shelf.resolve(Ref(name, version=target.version))
            reason = why or f"rollback to the entry {earlier[0].seq}"
            return AliasEntry(seq=seq, targets=earlier[0].targets, by=by, at=_now(), why=reason)

        return self._append_alias(name, alias, entry)

    def retire(self, name: str, version: int, *, by: str | None = None, why: str = "") -> RetireEntry:
        """Hide a version. Nothing is deleted; running requests and `restore` still find it."""
        leading = [
            alias
            for alias, entry in self._shelf(name).aliases().items()
            if any(target.version == version for target in entry.targets)
        ]
        if leading:
            raise Conflict(
                f"The alias `{leading[0]}` leads to `{name}@{version}`. Move or drop the alias first.",
                code="alias_in_use",
                param="version",
            )
        return self._append_retirement(name, version, retired=True, by=by, why=why)

    def restore(self, name: str, version: int, *, by: str | None = None, why: str = "") -> RetireEntry:
        """Show a retired version again."""
        return self._append_retirement(name, version, retired=False, by=by, why=why)

    # How ---------------------------------------------------------------------------------------------------

    def _current(self, name: str) -> Shelf:
        """The name's state now, read again when the store changed or cannot tell."""
        shelf = self._shelves.get(name)
        if shelf is not None and shelf.token is not None:
            if self.store.change_token(folder_of(name)) == shelf.token:
                return shelf
        shelf = read_shelf(self.store, name, shelf)
        if shelf.versions:  # names that clients made up are not remembered
            self._shelves[name] = shelf
        return shelf

    def _shelf(self, name: str) -> Shelf:
        shelf = self._current(name)
        if not shelf.versions:
            raise UnknownAdapter(name, nearest(name, (name_of(one) for one in self.store.folders("names"))))
        return shelf

    def _check_free(self, name: str, base: BaseModel) -> None:
        reserved = {one.lower() for one in base.names}
        if name.lower() in reserved:
            raise Conflict(
                f"name `{name}` means the base model itself. Choose another name for the adapter.",
                code="reserved_name",
                param="name",
            )
        _refuse_twin("name", name, (name_of(one) for one in self.store.folders("names")))

    def _keep_files(self, checked: Checked) -> tuple[FileEntry, ...]:
        """Put the files into the store, by their hashes."""
        if isinstance(self.store, LocalStore):
            self.store.sweep()
        staging = self.cache / "staging"
        try:
            staging.mkdir(parents=True, exist_ok=True)
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
            shelf = read_shelf(self.store, name, self._shelves.get(name))
            newest = shelf.versions[-1] if shelf.versions else 0
            if newest and newest not in shelf.retired and shelf.manifest(newest).digest == digest:
                return shelf.manifest(newest)
            if newest >= MAX_VERSION:
                raise Conflict(
                    f"`{name}` has used up its {MAX_VERSION} versions.", code="too_many", param="name"
                )
            manifest = make(newest + 1)
            if self.store.put_if_absent(version_key(name, newest + 1), manifest.to_bytes()):
                return manifest

    def _append_alias(
        self, name: str, alias: str, make: Callable[[Shelf, int], AliasEntry | None]
    ) -> AliasEntry:
        """Append what `make` says to the alias's log; None: the latest entry already says it."""
        while True:
            self._shelf(name)
            shelf = read_shelf(self.store, name, self._shelves.get(name))
            seq = shelf.alias_seqs.get(alias, 0) + 1
            entry = make(shelf, seq)
            if entry is None:
                return shelf.aliases()[alias]
            if self.store.put_if_absent(alias_key(name, alias, seq), entry.to_bytes()):
                return entry

    def _append_retirement(
        self, name: str, version: int, *, retired: bool, by: str | None, why: str
    ) -> RetireEntry:
        while True:
            self._shelf(name)
            shelf = read_shelf(self.store, name, self._shelves.get(name))
            shelf.manifest(version)
            seq = shelf.retire_seqs.get(version, 0)
            if seq and (version in shelf.retired) == retired:
                return read_record(self.store, retired_key(name, version, seq), RetireEntry)
            entry = RetireEntry(seq=seq + 1, retired=retired, by=by, at=_now(), why=why)
            if self.store.put_if_absent(retired_key(name, version, seq + 1), entry.to_bytes()):
                return entry


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _refuse_twin(what: str, wanted: str, existing: Any) -> None:
    """Two that differ only in case would be one on some file systems, and a trap for people on all."""
    for other in existing:
        if other != wanted and other.lower() == wanted.lower():
            raise Conflict(
                f"{what} `{wanted}` differs only in case from the existing `{other}`. Use that, or another.",
                code="case_conflict",
                param=what,
            )


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
