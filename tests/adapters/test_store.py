from __future__ import annotations

import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adapters import disk
from adapters.errors import StoreCorrupt, StoreFull, StoreUnreachable
from adapters.store import LocalStore


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "registry")


def fail_with(code: int) -> object:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def test_the_first_writer_wins(store: LocalStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"first")
    assert store.put_if_absent("names/a/version~000001.json", tmp_path / "file")
    assert not store.put_if_absent("names/a/version~000001.json", b"second")
    assert store.get("names/a/version~000001.json") == b"first"
    assert store.exists("names/a/version~000001.json")
    assert store.list("names/a") == ["names/a/version~000001.json"]
    assert store.folders("names") == ["a"]
    assert (tmp_path / "file").exists()


def test_one_of_many_threads_wins(store: LocalStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda number: store.put_if_absent("k/x", f"{number}".encode()), range(64)))
    assert won.count(True) == 1
    assert store.get("k/x") == str(won.index(True)).encode()
    assert list((store.root / "incoming").iterdir()) == []


def test_objects_are_read_only(store: LocalStore) -> None:
    store.put_if_absent("a/b", b"x")
    assert (store.root / "a/b").stat().st_mode & 0o777 == 0o444


def test_empty_places(store: LocalStore) -> None:
    assert store.list("names") == store.folders("names") == []
    assert not store.exists("names/a")
    with pytest.raises(StoreCorrupt, match="names/a` is missing"):
        store.get("names/a")


@pytest.mark.parametrize("where", ["_write", "_link"])
@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOSPC, StoreFull),
        (errno.EDQUOT, StoreFull),
        (errno.EIO, StoreUnreachable),
        (errno.EROFS, StoreUnreachable),
    ],
)
def test_a_failing_disk_leaves_nothing(
    where: str, code: int, kind: type[Exception], store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, where, fail_with(code))
    with pytest.raises(kind, match="names/a/x"):
        store.put_if_absent("names/a/x", b"data")
    assert list(disk.files_below(store.root)) == []
    monkeypatch.undo()
    assert store.put_if_absent("names/a/x", b"data")


def test_full_in_the_middle_of_a_file(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", fail_with(errno.ENOSPC))
    with pytest.raises(StoreFull, match="Free some space"):
        store.put_if_absent("x", b"data" * 1000)
    assert list(disk.files_below(store.root)) == []


def test_without_hard_links(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "hardlink_to", fail_with(errno.EPERM))
    assert store.put_if_absent("a/x", b"1")
    assert not store.put_if_absent("a/x", b"2")
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda number: store.put_if_absent("a/y", b"%d" % number), range(16)))
    assert won.count(True) == 1


def test_everything_is_flushed_before_it_is_acknowledged(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []
    real = os.fsync

    def spy(descriptor: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    store.put_if_absent("names/a/x", b"1")
    assert flushed[-1] == "a"  # the folder, after the file was linked into it
    assert {"registry", "names"} <= set(flushed)  # the new folders' own entries
    flushed.clear()
    store.put_if_absent("names/a/x", b"2")
    assert flushed == ["a"]  # another's object, which may not be flushed yet


def test_change_token(store: LocalStore) -> None:
    assert store.change_token("names/a") == ()
    store.put_if_absent("names/a/x", b"1")
    assert store.change_token("names/a") is None  # too fresh: a second change might look the same
    old = time.time() - 60
    os.utime(store.root / "names/a", (old, old))
    token = store.change_token("names/a")
    assert token is not None
    assert store.change_token("names/a") == token
    store.put_if_absent("names/a/y", b"1")
    assert store.change_token("names/a") is None
    future = time.time() + 3600
    os.utime(store.root / "names/a", (future, future))
    assert store.change_token("names/a") is None  # a clock that cannot be trusted


def test_sweeping_takes_only_what_is_old(store: LocalStore) -> None:
    assert store.sweep() == 0
    store.put_if_absent("names/a/x", b"1")
    incoming = store.root / "incoming"
    (incoming / "fresh").touch()
    (incoming / "old").touch()
    os.utime(incoming / "old", (1, 1))
    assert store.sweep() == 1
    assert [path.name for path in incoming.iterdir()] == ["fresh"]
    assert store.exists("names/a/x")


@pytest.mark.parametrize("action", ["get", "change_token", "list"])
def test_a_store_that_cannot_be_read(action: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = LocalStore(tmp_path / "file")
    with pytest.raises(StoreUnreachable, match="the registry in"):
        getattr(store, action)("names/a")
