"""What changes about a version after it was published: where aliases lead, and whether it is hidden.

Both are append-only logs whose highest entry holds, so history and rollback come free and two writers never
both win one entry. Checks come before the write, and once more after it where two different logs are
concerned (an alias that moves to a version while it is being retired).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from adapters.errors import Conflict, Retired, UnknownAdapter, UnknownAlias
from adapters.manifest import AliasEntry, RetireEntry, Target
from adapters.ref import Ref, check_alias, nearest
from adapters.shelf import (
    PRODUCTION,
    Shelf,
    alias_key,
    folder_of,
    name_of,
    read_record,
    read_shelf,
    retired_key,
)
from adapters.store import Store


class Moves:
    """The names of one store, and the moves of their aliases and versions; safe to share between threads."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._shelves: dict[str, Shelf] = {}

    # Reading ----------------------------------------------------------------------------------------------

    def _current(self, name: str) -> Shelf:
        """The name's state now, read again when the store changed or cannot tell."""
        shelf = self._shelves.get(name)
        if (
            shelf is not None
            and shelf.token is not None
            and self.store.change_token(folder_of(name)) == shelf.token
        ):
            return shelf
        shelf = self._fresh(name)
        if shelf.versions:  # names that clients made up are not remembered
            self._shelves[name] = shelf
        return shelf

    def _fresh(self, name: str) -> Shelf:
        """The name's state, looked up whatever the change token says; what every write starts from."""
        return read_shelf(self.store, name, self._shelves.get(name))

    def _shelf(self, name: str) -> Shelf:
        return self._known(self._current(name))

    def _known(self, shelf: Shelf) -> Shelf:
        if not shelf.versions:
            names = (name_of(folder) for folder in self.store.folders("names"))
            raise UnknownAdapter(shelf.name, nearest(shelf.name, names))
        return shelf

    def aliases(self, name: str) -> dict[str, AliasEntry]:
        """Where each alias leads now; dropped ones are left out."""
        return self._shelf(name).aliases()

    def history(self, name: str, alias: str) -> list[AliasEntry]:
        """Every move of an alias, oldest first."""
        shelf = self._shelf(name)
        last = shelf.alias_seqs.get(check_alias(alias))
        if last is None:
            raise UnknownAlias(name, alias, list(shelf.aliases()))
        keys = (alias_key(name, alias, seq) for seq in range(1, last + 1))
        return [read_record(self.store, key, AliasEntry) for key in keys]

    def retired_versions(self, name: str) -> dict[int, RetireEntry]:
        """The versions that are hidden now."""
        return dict(self._shelf(name).retired)

    # Aliases ----------------------------------------------------------------------------------------------

    def set_alias(
        self, name: str, alias: str, version: int, *, by: str | None = None, why: str = ""
    ) -> AliasEntry:
        """Point an alias at a version; already there: its entry is returned and nothing is written."""
        check_alias(alias)
        targets = (Target(version=version),)

        def entry(shelf: Shelf, seq: int) -> AliasEntry | None:
            shelf.resolve(Ref(name, version=version))  # it exists and is not retired
            refuse_twin("alias", alias, shelf.alias_seqs)
            now = shelf.alias(alias)
            if now is not None and now.targets == targets:
                return None
            return AliasEntry(seq=seq, targets=targets, by=by, at=now_utc(), why=why)

        placed = self._append_alias(name, alias, entry)
        self._undo_if_retired(name, alias, placed)
        return placed

    def drop_alias(self, name: str, alias: str, *, by: str | None = None, why: str = "") -> AliasEntry:
        """Make an alias lead nowhere; its history stays."""
        check_alias(alias)

        def entry(shelf: Shelf, seq: int) -> AliasEntry:
            if shelf.alias(alias) is None:
                raise UnknownAlias(name, alias, list(shelf.aliases()))
            return AliasEntry(seq=seq, targets=(), by=by, at=now_utc(), why=why)

        return self._append_alias(name, alias, entry)

    def rollback(
        self, name: str, alias: str = PRODUCTION, *, by: str | None = None, why: str = ""
    ) -> AliasEntry:
        """Point an alias where it led before its last move, as a new entry (twice leads back again)."""
        check_alias(alias)

        def entry(shelf: Shelf, seq: int) -> AliasEntry:
            current = shelf.alias(alias)
            if current is None:
                raise UnknownAlias(name, alias, list(shelf.aliases()))
            for earlier in reversed(self.history(name, alias)[: seq - 1]):
                if earlier.targets and earlier.targets != current.targets:
                    break
            else:
                raise Conflict(
                    f"The alias `{alias}` of `{name}` has never led anywhere else than to version "
                    f"{current.version}, so there is nothing to roll back to.",
                    code="nothing_to_roll_back",
                    param="alias",
                )
            for target in earlier.targets:
                shelf.resolve(Ref(name, version=target.version))
            reason = why or f"rollback to entry {earlier.seq}"
            return AliasEntry(seq=seq, targets=earlier.targets, by=by, at=now_utc(), why=reason)

        placed = self._append_alias(name, alias, entry)
        self._undo_if_retired(name, alias, placed)
        return placed

    def _append_alias(
        self, name: str, alias: str, make: Callable[[Shelf, int], AliasEntry | None]
    ) -> AliasEntry:
        """Append what `make` says to the alias's log; None: the latest entry already says it."""
        while True:
            shelf = self._known(self._fresh(name))
            seq = shelf.alias_seqs.get(alias, 0) + 1
            entry = make(shelf, seq)
            if entry is None:
                return read_record(self.store, alias_key(name, alias, seq - 1), AliasEntry)
            if self.store.put_if_absent(alias_key(name, alias, seq), entry.to_bytes()):
                return entry

    def _undo_if_retired(self, name: str, alias: str, placed: AliasEntry) -> None:
        """A version that was retired while the alias moved there: lead the alias back, and say so."""
        shelf = self._fresh(name)
        gone = [target.version for target in placed.targets if target.version in shelf.retired]
        if not gone:
            return
        before = self.history(name, alias)[: placed.seq - 1]
        targets = before[-1].targets if before else ()

        def entry(_: Shelf, seq: int) -> AliasEntry | None:
            if seq != placed.seq + 1:
                return None  # somebody has moved it on
            why = f"version {gone[0]} was retired meanwhile"
            return AliasEntry(seq=seq, targets=targets, by=placed.by, at=now_utc(), why=why)

        self._append_alias(name, alias, entry)
        raise Retired(name, gone[0], shelf.retired[gone[0]].why)

    # Versions ---------------------------------------------------------------------------------------------

    def retire(self, name: str, version: int, *, by: str | None = None, why: str = "") -> RetireEntry:
        """Hide a version that no alias leads to. Nothing is deleted, and `restore` shows it again."""
        self._refuse_aliased(name, version)
        entry = self._append_retirement(name, version, retired=True, by=by, why=why)
        try:
            self._refuse_aliased(name, version)  # an alias that came here meanwhile
        except Conflict:
            self._append_retirement(name, version, retired=False, by=by, why="an alias leads here")
            raise
        return entry

    def restore(self, name: str, version: int, *, by: str | None = None, why: str = "") -> RetireEntry:
        """Show a retired version again."""
        return self._append_retirement(name, version, retired=False, by=by, why=why)

    def _refuse_aliased(self, name: str, version: int) -> None:
        for alias, entry in self._known(self._fresh(name)).aliases().items():
            if any(target.version == version for target in entry.targets):
                raise Conflict(
                    f"The alias `{alias}` leads to `{name}@{version}`. Move or drop the alias first.",
                    code="alias_in_use",
                    param="version",
                )

    def _append_retirement(
        self, name: str, version: int, *, retired: bool, by: str | None, why: str
    ) -> RetireEntry:
        while True:
            shelf = self._known(self._fresh(name))
            shelf.require(version)
            seq = shelf.retire_seqs.get(version, 0)
            if (version in shelf.retired) == retired and seq:
                return read_record(self.store, retired_key(name, version, seq), RetireEntry)
            entry = RetireEntry(seq=seq + 1, retired=retired, by=by, at=now_utc(), why=why)
            if self.store.put_if_absent(retired_key(name, version, seq + 1), entry.to_bytes()):
                return entry


def now_utc() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def refuse_twin(what: str, wanted: str, existing: Iterable[str]) -> None:
    """Two that differ only in case would be one on some file systems, and a trap for people on all."""
    for other in existing:
        if other != wanted and other.lower() == wanted.lower():
            raise Conflict(
                f"{what} `{wanted}` differs only in case from the existing `{other}`. Use that, or another.",
                code="case_conflict",
                param=what,
            )
