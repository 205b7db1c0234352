"""Adapters that cannot be served, against the real base: each is refused for its own reason, and leaves nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.base import BaseModel
from adapters.errors import Refused
from adapters.registry import Registry
from adapters.store import LocalStore
from deploy.exits import Exit
from tests.bad_adapters import BAD, GOOD, good
from tests.e2e.commands import refusal, run

# The worst of what an engine takes without a word, and one that it refuses late.
BY_COMMAND = ("nan", "smaller_base", "nothing_matches", "dora")


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(LocalStore(tmp_path / "registry"), cache=tmp_path / "cache")


def kept(registry: Registry) -> list[str]:
    """Every file of the store."""
    assert isinstance(registry.store, LocalStore)
    root = registry.store.root
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


@pytest.mark.parametrize("case", BAD)
def test_refused_for_its_own_reason(case: str, base: BaseModel, registry: Registry, tmp_path: Path) -> None:
    folder = BAD[case].build(tmp_path / case, base)
    with pytest.raises(Refused) as caught:
        registry.publish(case.replace("_", "-"), folder, base)
    assert caught.value.reason == BAD[case].reason
    assert "\n" not in caught.value.message
    assert registry.names() == []
    assert kept(registry) == []
    assert not Path("PWNED").exists()  # no pickle was opened


@pytest.mark.parametrize("case", GOOD)
def test_unusual_and_published(case: str, base: BaseModel, registry: Registry, tmp_path: Path) -> None:
    draft = good(base)
    GOOD[case](draft)
    manifest = registry.publish(case.replace("_", "-"), draft.write(tmp_path / case), base)
    assert registry.names() == [manifest.name]
    assert registry.resolve(manifest.ref) == manifest
    assert {path.name for path in registry.materialize(manifest).iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


@pytest.mark.parametrize("case", BY_COMMAND)
def test_the_command_says_it_in_one_line(
    case: str, base: BaseModel, shared_home: Path, tmp_path: Path
) -> None:
    folder, store = BAD[case].build(tmp_path / case, base), tmp_path / "registry"
    with pytest.raises(Refused) as caught:
        Registry(LocalStore(store), cache=tmp_path / "cache").publish("bad", folder, base)
    published = refusal("adapters", "publish", "bad", str(folder), "--store", str(store), cwd=tmp_path)
    checked = refusal("adapters", "check", str(folder), cwd=tmp_path)
    for found in (published, checked):
        assert found.code == Exit.REFUSED
        assert found.line == caught.value.message
        assert found.said_before == ()
    assert not list(store.rglob("*.json"))
    assert not (tmp_path / "PWNED").exists()


def test_the_command_publishes_a_good_one(base: BaseModel, shared_home: Path, tmp_path: Path) -> None:
    folder, store = good(base).write(tmp_path / "good"), tmp_path / "registry"
    checked = run("adapters", "check", str(folder))
    assert checked.returncode == 0, checked.stderr
    done = run("adapters", "publish", "fine", str(folder), "--store", str(store))
    assert done.returncode == 0, done.stderr
    assert "fine@1 is in the registry" in done.stdout
