from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Protocol

import pytest

from adapters import shelf
from adapters.base import BaseModel, open_base
from adapters.check import CHECKS
from adapters.errors import (
    BadReference,
    BadValue,
    Conflict,
    Refused,
    Retired,
    StoreCorrupt,
    StoreFull,
    UnknownAdapter,
    UnknownAlias,
    UnknownVersion,
)
from adapters.manifest import AliasEntry, Manifest, Target
from adapters.ref import Ref
from adapters.registry import Registry, fits
from adapters.store import LocalStore
from tests.adapters.conftest import write_base
from tests.bad_adapters import BAD, WEIGHTS, good


@pytest.fixture
def publish(registry: Registry, base: BaseModel, tmp_path: Path) -> object:
    """publish("name", seed) -> Manifest: a new adapter for each seed."""

    def make(name: str, seed: int = 0, **options: object) -> Manifest:
        folder = tmp_path / "made" / str(seed)
        if not folder.exists():
            good(base, seed).write(folder)
        return registry.publish(name, folder, base, **options)  # type: ignore[arg-type]

    return make


class Publish(Protocol):
    """The type of the fixture above."""

    def __call__(self, name: str, seed: int = 0, **options: object) -> Manifest: ...


def again(registry: Registry) -> Registry:
    """Another process's view of the same store."""
    return Registry(LocalStore(registry.store.root), cache=registry.cache)  # type: ignore[attr-defined]


# Publish ----------------------------------------------------------------------------------------------------


def test_a_version_says_what_it_is(publish: Publish, base: BaseModel) -> None:
    one = publish("Support", by="me", why="first", scores={"exact_match": 1.0}, lineage={"seed": 7})
    assert one.ref == "Support@1"
    assert one.base.fingerprint == base.fingerprint
    assert (one.base.name, one.base.status, one.base.hint) == ("tiny-base", "unverified", "somewhere/else")
    assert one.lora is not None
    assert (one.lora.rank, one.lora.scale, one.lora.dtype) == (4, 2.0, "F32")
    assert [file.path for file in one.files] == ["adapter_config.json", WEIGHTS]
    assert (one.proof.level, one.proof.checks) == ("static", CHECKS)
    assert (one.by, one.why, one.scores, one.lineage) == ("me", "first", {"exact_match": 1.0}, {"seed": 7})
    assert one.at.endswith("+00:00")


def test_versions_count_up_and_equal_content_is_one_version(publish: Publish, registry: Registry) -> None:
    assert [publish("a", seed).version for seed in (0, 0, 1, 1, 0)] == [1, 1, 2, 2, 3]
    assert [one.version for one in registry.versions("a")] == [1, 2, 3]
    assert registry.versions("a")[0].digest == registry.versions("a")[2].digest


def test_another_serving_block_is_another_version(publish: Publish) -> None:
    assert publish("a").version == 1
    assert publish("a", serving={"stop": ["END"]}).version == 2
    with pytest.raises(BadValue, match="unknown key"):
        publish("a", serving={"stops": ["END"]})


def test_what_is_refused_leaves_no_trace(registry: Registry, base: BaseModel, tmp_path: Path) -> None:
    folder = BAD["nan"].build(tmp_path / "bad", base)
    with pytest.raises(Refused):
        registry.publish("a", folder, base)
    assert registry.names() == []
    assert not (tmp_path / "home" / "registry").exists()


@pytest.mark.parametrize("name", ["tiny-base", "Tiny-Base"])
def test_the_base_keeps_its_name(name: str, publish: Publish) -> None:
    with pytest.raises(Conflict) as caught:
        publish(name)
    assert (caught.value.code, caught.value.param) == ("reserved_name", "name")


def test_names_that_differ_in_case_only(publish: Publish) -> None:
    publish("Support")
    with pytest.raises(Conflict, match="`Support`"):
        publish("support")
    assert publish("Support", 1).version == 2


@pytest.mark.parametrize("options", [{"name": "a b"}, {"name": "a", "alias": "3"}])
def test_bad_names(options: dict[str, str], publish: Publish) -> None:
    with pytest.raises(BadValue):
        publish(**options)  # type: ignore[arg-type]


def test_a_full_disk_leaves_nothing_half_written(
    publish: Publish, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish("a")
    write = LocalStore._write

    def full(self: LocalStore, temporary: Path, data: bytes | Path) -> None:
        if isinstance(data, bytes):  # the manifest, after the blobs
            temporary.write_bytes(data[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, temporary, data)

    monkeypatch.setattr(LocalStore, "_write", full)
    with pytest.raises(StoreFull):
        publish("a", 1)
    assert [one.version for one in again(registry).versions("a")] == [1]
    monkeypatch.undo()
    assert publish("a", 1).version == 2


# Resolve ----------------------------------------------------------------------------------------------------


def test_every_way_to_name_a_version(publish: Publish, registry: Registry) -> None:
    one, two = publish("t/a", 0), publish("t/a", 1)
    assert registry.resolve("t/a") == two
    assert registry.resolve("t/a@1") == one
    assert registry.resolve(f"t/a@{one.digest}") == one
    assert registry.resolve(Ref("t/a", version=2)) == two
    registry.set_alias("t/a", "production", 1)
    registry.set_alias("t/a", "canary", 2)
    assert registry.resolve("t/a") == one
    assert registry.resolve("t/a:production") == one
    assert registry.resolve("t/a:canary") == two


def test_what_is_not_there(publish: Publish, registry: Registry) -> None:
    publish("support")
    with pytest.raises(UnknownAdapter) as name:
        registry.resolve("suport")
    assert name.value.nearest == ["support"]
    with pytest.raises(UnknownVersion, match="Its versions: 1"):
        registry.resolve("support@2")
    with pytest.raises(UnknownVersion):
        registry.resolve("support@sha256:" + "0" * 64)
    with pytest.raises(UnknownAlias, match="Its aliases: none"):
        registry.resolve("support:canary")
    with pytest.raises(BadReference):
        registry.resolve("support@latest")
    with pytest.raises(UnknownAdapter):
        registry.versions("nobody")


def test_made_up_names_are_not_remembered(registry: Registry) -> None:
    for number in range(50):
        with pytest.raises(UnknownAdapter):
            registry.resolve(f"made-up-{number}")
    assert registry._shelves == {}


def test_another_process_is_seen_at_once(publish: Publish, registry: Registry) -> None:
    publish("a")
    other = again(registry)
    assert other.resolve("a").version == 1
    folder = registry.store.root / "names" / "a"  # type: ignore[attr-defined]
    os.utime(folder, (1, 1))  # settled: from now on the change token is believed
    assert other.resolve("a").version == 1
    publish("a", 1)
    assert other.resolve("a").version == 2
    registry.set_alias("a", "production", 1)
    assert other.resolve("a").version == 1


def test_a_settled_name_is_not_read_again(
    publish: Publish, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish("a", alias="production")
    os.utime(registry.store.root / "names" / "a", (1, 1))  # type: ignore[attr-defined]
    first = registry.resolve("a")

    def fail(*_: object) -> None:
        pytest.fail("the store was read")

    monkeypatch.setattr(LocalStore, "get", fail)
    monkeypatch.setattr(LocalStore, "list", fail)
    assert registry.resolve("a") is first


def test_weighted_targets_are_understood(publish: Publish, registry: Registry) -> None:
    for seed in range(3):
        publish("a", seed)
    targets = (Target(version=1, weight=0.2), Target(version=3, weight=0.4), Target(version=2, weight=0.4))
    entry = AliasEntry(seq=1, targets=targets, at="now")
    registry.store.put_if_absent(shelf.alias_key("a", "production", 1), entry.to_bytes())
    assert registry.resolve("a").version == 2
    with pytest.raises(Conflict):
        registry.retire("a", 1)  # any target counts


def test_models_for_a_base(publish: Publish, registry: Registry, base: BaseModel, tmp_path: Path) -> None:
    publish("a")
    publish("b")
    other = open_base(str(write_base(tmp_path / "other", seed=5)), home=tmp_path / "home")
    registry.publish("c", good(other).write(tmp_path / "for-other"), other)
    assert registry.names() == ["a", "b", "c"]
    assert registry.models_for(base) == ["a", "b"]
    assert registry.models_for(other) == ["c"]
    registry.retire("b", 1)
    assert registry.models_for(base) == ["a"]
    assert fits(registry.resolve("a"), base)
    (base.folder / "chat_template.jinja").write_text("{{ 1 }}")
    changed = open_base(str(base.folder), home=tmp_path / "home")
    assert fits(registry.resolve("a"), changed)


# Aliases ----------------------------------------------------------------------------------------------------


def test_history_and_rollback(publish: Publish, registry: Registry) -> None:
    for seed in range(3):
        publish("a", seed)
    for version in (1, 2, 2, 3):
        registry.set_alias("a", "production", version, by="me", why=f"to {version}")
    assert [entry.version for entry in registry.history("a", "production")] == [1, 2, 3]
    back = registry.rollback("a", by="me")
    assert (back.version, back.seq) == (2, 4)
    assert registry.resolve("a").version == 2
    assert registry.rollback("a").version == 3
    assert [entry.version for entry in registry.history("a", "production")] == [1, 2, 3, 2, 3]
    assert list(registry.aliases("a")) == ["production"]


def test_nothing_to_roll_back(publish: Publish, registry: Registry) -> None:
    publish("a")
    with pytest.raises(UnknownAlias):
        registry.rollback("a")
    registry.set_alias("a", "production", 1)
    with pytest.raises(Conflict, match="nothing to roll back"):
        registry.rollback("a")
    with pytest.raises(UnknownAlias):
        registry.history("a", "canary")


def test_publishing_with_an_alias(publish: Publish, registry: Registry) -> None:
    assert publish("a", 0, alias="production").version == 1
    publish("a", 1)
    assert registry.resolve("a").version == 1
    publish("a", 1, alias="production")  # nothing new but the alias
    assert registry.resolve("a").version == 2


def test_dropping_an_alias(publish: Publish, registry: Registry) -> None:
    publish("a", 0, alias="production")
    publish("a", 1)
    registry.drop_alias("a", "production", why="test")
    assert registry.aliases("a") == {}
    assert registry.resolve("a").version == 2
    with pytest.raises(UnknownAlias):
        registry.drop_alias("a", "production")
    assert [entry.version for entry in registry.history("a", "production")] == [1, None]
    registry.set_alias("a", "production", 1)
    assert registry.resolve("a").version == 1


def test_aliases_need_something_to_lead_to(publish: Publish, registry: Registry) -> None:
    with pytest.raises(UnknownAdapter):
        registry.set_alias("a", "production", 1)
    publish("a")
    with pytest.raises(UnknownVersion):
        registry.set_alias("a", "production", 2)
    registry.set_alias("a", "Production", 1)
    with pytest.raises(Conflict, match="only in case"):
        registry.set_alias("a", "production", 1)


# Retire -----------------------------------------------------------------------------------------------------


def test_retired_versions_are_hidden_and_come_back(publish: Publish, registry: Registry) -> None:
    publish("a", 0)
    publish("a", 1)
    registry.retire("a", 2, by="me", why="wrong answers")
    assert registry.resolve("a").version == 1
    for reference in ("a@2", f"a@{registry.versions('a')[1].digest}"):
        with pytest.raises(Retired, match="wrong answers"):
            registry.resolve(reference)
    with pytest.raises(Retired):
        registry.set_alias("a", "canary", 2)
    assert list(registry.retired_versions("a")) == [2]
    assert registry.retire("a", 2).seq == 1  # already
    assert registry.restore("a", 2).seq == 2
    assert registry.resolve("a").version == 2


def test_everything_retired(publish: Publish, registry: Registry) -> None:
    publish("a")
    registry.retire("a", 1)
    with pytest.raises(Retired, match="Every version"):
        registry.resolve("a")
    assert registry.names() == ["a"]
    assert publish("a").version == 2  # the same content again, since the other is hidden


def test_what_an_alias_leads_to_is_not_retired(publish: Publish, registry: Registry) -> None:
    publish("a", 0, alias="production")
    with pytest.raises(Conflict, match="`production` leads to `a@1`"):
        registry.retire("a", 1)
    with pytest.raises(UnknownVersion):
        registry.retire("a", 7)


def test_an_alias_and_a_retirement_that_cross(
    publish: Publish, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever is written second notices the other and takes itself back."""
    publish("a", 0, alias="production")
    publish("a", 1)
    other = again(registry)
    put = LocalStore.put_if_absent

    def retire_first(self: LocalStore, key: str, data: bytes | Path) -> bool:
        monkeypatch.setattr(LocalStore, "put_if_absent", put)
        other.retire("a", 2)
        return put(self, key, data)

    monkeypatch.setattr(LocalStore, "put_if_absent", retire_first)
    with pytest.raises(Retired):
        registry.set_alias("a", "production", 2)
    assert registry.resolve("a").version == 1
    registry.restore("a", 2)

    def alias_first(self: LocalStore, key: str, data: bytes | Path) -> bool:
        monkeypatch.setattr(LocalStore, "put_if_absent", put)
        other.set_alias("a", "production", 2)
        return put(self, key, data)

    monkeypatch.setattr(LocalStore, "put_if_absent", alias_first)
    with pytest.raises(Conflict, match="leads to"):
        registry.retire("a", 2)
    assert registry.resolve("a").version == 2


# Materialise ------------------------------------------------------------------------------------------------


def flip(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def blob(registry: Registry, manifest: Manifest, name: str = WEIGHTS) -> Path:
    sha256 = next(file.sha256 for file in manifest.files if file.path == name)
    return Path(registry.store.root, "blobs/sha256", sha256[:2], sha256)  # type: ignore[attr-defined]


def test_a_folder_for_the_engine(publish: Publish, registry: Registry, tmp_path: Path) -> None:
    one = publish("a")
    folder = registry.materialize(one)
    assert folder == registry.cache / "adapters" / one.digest.removeprefix("sha256:")
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", WEIGHTS]
    assert (folder / WEIGHTS).read_bytes() == (tmp_path / "made" / "0" / WEIGHTS).read_bytes()
    assert registry.materialize(publish("b")) == folder  # equal content, one folder
    assert again(registry).materialize(one) == folder


@pytest.mark.parametrize("when", ["before", "after", "in another process"])
def test_a_flipped_byte_is_found(when: str, publish: Publish, registry: Registry) -> None:
    one = publish("a")
    if when != "before":
        registry.materialize(one)
    flip(blob(registry, one))
    viewer = again(registry) if when == "in another process" else registry
    with pytest.raises(StoreCorrupt, match="is damaged") as caught:
        viewer.materialize(one)
    assert blob(registry, one).name in caught.value.message
    assert caught.value.key == f"blobs/sha256/{blob(registry, one).name[:2]}/{blob(registry, one).name}"


def test_a_damaged_copy_is_made_again(
    publish: Publish, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    one = publish("a")
    monkeypatch.setattr(Path, "hardlink_to", no_links)
    folder = registry.materialize(one)
    before = (folder / WEIGHTS).read_bytes()
    flip(folder / WEIGHTS)
    assert registry.materialize(one) == folder
    assert (folder / WEIGHTS).read_bytes() == before
    (folder / WEIGHTS).unlink()
    assert (again(registry).materialize(one) / WEIGHTS).read_bytes() == before


def test_a_missing_blob_is_named(publish: Publish, registry: Registry) -> None:
    one = publish("a")
    path = blob(registry, one, "adapter_config.json")
    path.unlink()
    with pytest.raises(StoreCorrupt, match="is missing") as caught:
        registry.materialize(one)
    assert path.name in caught.value.message


def test_a_damaged_blob_is_mended_by_publishing_again(publish: Publish, registry: Registry) -> None:
    one = publish("a")
    flip(blob(registry, one))
    with pytest.raises(StoreCorrupt, match="Delete that file and publish"):
        publish("a")
    blob(registry, one).unlink()
    assert publish("a") == one
    registry.materialize(one)


def test_a_full_disk_while_materialising(
    publish: Publish, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    one = publish("a")
    monkeypatch.setattr(Path, "hardlink_to", full)
    with pytest.raises(StoreFull, match="a@1"):
        registry.materialize(one)
    assert [path.name for path in (registry.cache / "adapters").iterdir() if path.is_dir()] == []


# Damage -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"", "cannot be read"), (b"{}", "cannot be read"), (b"\xff\xfe", "cannot be read")],
)
def test_a_damaged_manifest_hides_nothing_else(
    content: bytes, problem: str, publish: Publish, registry: Registry, base: BaseModel
) -> None:
    publish("a", 0)
    publish("a", 1)
    publish("b")
    path = Path(registry.store.root, shelf.version_key("a", 2))  # type: ignore[attr-defined]
    path.chmod(0o644)
    path.write_bytes(content)
    fresh = again(registry)
    assert fresh.resolve("a@1").version == 1
    assert fresh.names() == fresh.models_for(base) == ["a", "b"]
    with pytest.raises(StoreCorrupt, match=problem) as caught:
        fresh.resolve("a")
    assert caught.value.key == "names/a/version~000002.json"
    fresh.set_alias("a", "production", 1)
    assert fresh.resolve("a").version == 1


def test_an_edited_manifest_is_noticed(publish: Publish, registry: Registry) -> None:
    publish("a")
    path = Path(registry.store.root, shelf.version_key("a", 1))  # type: ignore[attr-defined]
    data = json.loads(path.read_bytes())
    path.chmod(0o644)
    path.write_text(json.dumps(data | {"name": "b"}))
    with pytest.raises(StoreCorrupt, match="says that it is b@1"):
        again(registry).resolve("a")
    data["files"][0]["sha256"] = "0" * 64
    path.write_text(json.dumps(data))
    with pytest.raises(StoreCorrupt, match="does not have the digest"):
        again(registry).resolve("a")


def test_strange_files_are_ignored(publish: Publish, registry: Registry) -> None:
    publish("a")
    folder = Path(registry.store.root, "names/a")  # type: ignore[attr-defined]
    for name in (
        "version~2.json",
        "alias~3~000001.json",
        ".DS_Store",
        "notes.txt",
        "version~000002.json.bak",
    ):
        (folder / name).write_text("?")
    (folder.parent / "empty").mkdir()
    assert registry.resolve("a").version == 1
    assert again(registry).names() == ["a"]
