"""One name's objects in the store, read into memory and kept until the store says that something changed.

`Shelf` is a snapshot: which versions there are, which are retired, where each alias leads. Manifests are
immutable, so each is read once. Nothing here writes.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from pydantic import ValidationError

from adapters.errors import Retired, StoreCorrupt, UnknownAlias, UnknownVersion
from adapters.manifest import AliasEntry, Manifest, Record, RetireEntry, digest_of
from adapters.ref import ALIAS, Ref
from adapters.store import Store

PRODUCTION = "production"

_RESTORE = "Restore it from a backup, or remove the file to lose this entry."
_VERSION = re.compile(r"version~(\d{6})\.json")
_ALIAS = re.compile(rf"alias~({ALIAS})~(\d{{6}})\.json")
_RETIRED = re.compile(r"retired~(\d{6})~(\d{6})\.json")

R = TypeVar("R", bound=Record)


def folder_of(name: str) -> str:
    return "names/" + name.replace("/", "~")


def name_of(folder: str) -> str:
    return folder.replace("~", "/")


def version_key(name: str, version: int) -> str:
    return f"{folder_of(name)}/version~{version:06d}.json"


def alias_key(name: str, alias: str, seq: int) -> str:
    return f"{folder_of(name)}/alias~{alias}~{seq:06d}.json"


def retired_key(name: str, version: int, seq: int) -> str:
    return f"{folder_of(name)}/retired~{version:06d}~{seq:06d}.json"


def read_record(store: Store, key: str, kind: type[R]) -> R:
    """One stored record; StoreCorrupt names it when it is not what it must be."""
    try:
        return kind.model_validate_json(store.get(key))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "content"
        raise StoreCorrupt(key, f"cannot be read ({where}: {first['msg']})", _RESTORE) from None


@dataclass(frozen=True, slots=True)
class Shelf:
    """What is known of one name; `token` is the store's state that this was read at."""

    name: str
    store: Store
    token: Hashable | None
    versions: tuple[int, ...]  # ascending
    retired: Mapping[int, RetireEntry]  # only those that are hidden now
    alias_seqs: Mapping[str, int]  # the highest entry of each alias, dropped ones included
    retire_seqs: Mapping[int, int]
    _manifests: dict[int, Manifest] = field(default_factory=dict)
    _records: dict[str, Record] = field(default_factory=dict)  # by key; shared with the next snapshot

    @property
    def newest(self) -> int | None:
        """The newest version that is not retired."""
        return next((number for number in reversed(self.versions) if number not in self.retired), None)

    def manifest(self, version: int) -> Manifest:
        found = self._manifests.get(version)
        if found is not None:
            return found
        self.require(version)
        key = version_key(self.name, version)
        manifest = _kept(self.store, key, Manifest, self._records)
        if (manifest.name, manifest.version) != (self.name, version):
            raise StoreCorrupt(key, f"says that it is {manifest.ref}", _RESTORE)
        if digest_of(manifest) != manifest.digest:
            raise StoreCorrupt(key, "does not have the digest that it states", _RESTORE)
        self._manifests[version] = manifest
        return manifest

    def require(self, version: int) -> None:
        if version not in self.versions:
            raise UnknownVersion(self.name, version, self.visible())

    def visible(self) -> list[int]:
        return [number for number in self.versions if number not in self.retired]

    def alias(self, alias: str) -> AliasEntry | None:
        """The latest entry of an alias that leads somewhere."""
        seq = self.alias_seqs.get(alias)
        if seq is None:
            return None
        entry = _kept(self.store, alias_key(self.name, alias, seq), AliasEntry, self._records)
        return entry if entry.targets else None

    def aliases(self) -> dict[str, AliasEntry]:
        """Each alias that leads somewhere, with its latest entry."""
        entries = ((alias, self.alias(alias)) for alias in sorted(self.alias_seqs))
        return {alias: entry for alias, entry in entries if entry is not None}

    def resolve(self, ref: Ref) -> Manifest:
        """The exact version that a reference means now."""
        if ref.version is not None:
            return self._open(ref.version)
        if ref.digest is not None:
            return self._by_digest(ref.digest)
        entry = self.alias(ref.alias or PRODUCTION)
        if entry is not None and entry.version is not None:
            return self._open(entry.version)
        if ref.alias is not None:
            raise UnknownAlias(self.name, ref.alias, list(self.aliases()))
        newest = self.newest
        if newest is None:
            raise Retired(self.name, None)
        return self.manifest(newest)

    def _open(self, version: int) -> Manifest:
        hidden = self.retired.get(version)
        if hidden is not None:
            raise Retired(self.name, version, hidden.why)
        return self.manifest(version)

    def _by_digest(self, digest: str) -> Manifest:
        matching = [number for number in reversed(self.versions) if self.manifest(number).digest == digest]
        for number in matching:
            if number not in self.retired:
                return self.manifest(number)
        if matching:
            raise Retired(self.name, matching[0], self.retired[matching[0]].why)
        raise UnknownVersion(self.name, digest, self.visible())


def _kept(store: Store, key: str, kind: type[R], records: dict[str, Record]) -> R:
    found = records.get(key)
    if isinstance(found, kind):
        return found
    record = read_record(store, key, kind)
    records[key] = record
    return record


def read_shelf(store: Store, name: str, before: Shelf | None) -> Shelf:
    """Look at the store, keeping the records that `before` has read already."""
    token = store.change_token(folder_of(name))  # first, so that a later change is never missed
    versions: list[int] = []
    alias_seqs: dict[str, int] = {}
    retire_seqs: dict[int, int] = {}
    for key in store.list(folder_of(name)):
        entry = key.rpartition("/")[2]
        if match := _VERSION.fullmatch(entry):
            versions.append(int(match[1]))
        elif match := _ALIAS.fullmatch(entry):
            alias_seqs[match[1]] = max(alias_seqs.get(match[1], 0), int(match[2]))
        elif match := _RETIRED.fullmatch(entry):
            number = int(match[1])
            retire_seqs[number] = max(retire_seqs.get(number, 0), int(match[2]))
    records = before._records if before is not None else {}
    retired: dict[int, RetireEntry] = {}
    for number, seq in retire_seqs.items():
        hidden = _kept(store, retired_key(name, number, seq), RetireEntry, records)
        if hidden.retired:
            retired[number] = hidden
    manifests = dict(before._manifests) if before is not None else {}
    return Shelf(
        name=name,
        store=store,
        token=token,
        versions=tuple(sorted(versions)),
        retired=retired,
        alias_seqs=alias_seqs,
        retire_seqs=retire_seqs,
        _manifests={number: manifest for number, manifest in manifests.items() if number in set(versions)},
        _records=records,
    )
