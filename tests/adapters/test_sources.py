"""Fetching from Hugging Face, against a hub that is a local folder."""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import huggingface_hub
import pytest
from huggingface_hub import errors as hub_errors

from adapters.base import BaseModel, open_base
from adapters.errors import (
    BadValue,
    BaseBroken,
    BaseNotFound,
    BaseUnreachable,
    Refused,
    SourceNotFound,
    SourceUnreachable,
    StoreFull,
)
from adapters.sources import fetch_source
from tests.adapters.conftest import write_base
from tests.bad_adapters import good


@dataclass
class Hub:
    """Repositories by id; `down` is raised instead of any answer, `damage` changes what is sent."""

    root: Path
    down: Exception | None = None
    damage: str | None = None
    asked: list[str] = field(default_factory=list)

    def model_info(self, repo: str, revision: str | None = None, **_: object) -> Any:
        self.asked.append("look")
        if self.down is not None:
            raise self.down
        folder = self.root / repo
        if not folder.is_dir():
            raise error(hub_errors.RepositoryNotFoundError)
        if revision not in (None, "main", "c0ffee"):
            raise error(hub_errors.RevisionNotFoundError)
        siblings = [self._sibling(folder, path) for path in sorted(folder.rglob("*")) if path.is_file()]
        return SimpleNamespace(siblings=siblings, sha="c0ffee")

    def _sibling(self, folder: Path, path: Path) -> Any:
        data = path.read_bytes()
        lfs = (
            SimpleNamespace(sha256=hashlib.sha256(data).hexdigest())
            if path.suffix == ".safetensors"
            else None
        )
        return SimpleNamespace(rfilename=path.relative_to(folder).as_posix(), size=len(data), lfs=lfs)

    def snapshot_download(
        self, repo: str, *, local_dir: Path, allow_patterns: list[str], **_: object
    ) -> None:
        self.asked.append("fetch")
        if self.down is not None:
            raise self.down
        for path in (self.root / repo).iterdir():
            if any(fnmatch.fnmatch(path.name, pattern) for pattern in allow_patterns):
                shutil.copy(path, local_dir / path.name)
                if self.damage == "flip" and path.suffix == ".safetensors":
                    data = bytearray(path.read_bytes())
                    data[-1] ^= 1
                    (local_dir / path.name).write_bytes(data)
                if self.damage == "cut":
                    (local_dir / path.name).write_bytes(b"")
        (local_dir / ".cache" / "huggingface").mkdir(parents=True, exist_ok=True)


def error(kind: type[hub_errors.HfHubHTTPError]) -> Exception:
    response = httpx.Response(404, request=httpx.Request("GET", "http://localhost"))
    try:
        return kind("no", response=response)  # type: ignore[arg-type]
    except (TypeError, AttributeError):
        return kind("no")  # type: ignore[call-arg]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    fake = Hub(tmp_path / "hub")
    fake.root.mkdir()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    return fake


DOWN = [
    hub_errors.OfflineModeIsEnabled("offline"),
    hub_errors.LocalEntryNotFoundError("no connection"),
    httpx.ConnectError("name not known"),
    ConnectionResetError(errno.ECONNRESET, "reset"),
    TimeoutError("slow"),
]


# Adapters ---------------------------------------------------------------------------------------------------


def test_a_local_folder(tmp_path: Path) -> None:
    assert fetch_source(str(tmp_path), cache=tmp_path / "cache") == tmp_path
    with pytest.raises(BadValue, match="local folder"):
        fetch_source(str(tmp_path), revision="main", cache=tmp_path / "cache")


@pytest.mark.parametrize("spec", ["hf:me/adapter", "me/adapter", "me/adapter@main"])
def test_a_repository(spec: str, hub: Hub, base: BaseModel, tmp_path: Path) -> None:
    folder = good(base).write(hub.root / "me" / "adapter")
    (folder / "optimizer.pt").write_bytes(b"a pickle, which nobody asked for")
    (folder / "README.md").write_text("hello")
    found = fetch_source(spec, cache=tmp_path / "cache")
    assert sorted(path.name for path in found.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    fetch_source(spec, cache=tmp_path / "cache")
    assert hub.asked == ["look", "fetch", "look"]


def test_pickles_only(hub: Hub, base: BaseModel, tmp_path: Path) -> None:
    draft = good(base)
    draft.has_weights = False
    draft.files["adapter_model.bin"] = b"evil"
    draft.write(hub.root / "me" / "adapter")
    with pytest.raises(Refused) as caught:
        fetch_source("me/adapter", cache=tmp_path / "cache")
    assert caught.value.reason == "pickled_weights"
    assert hub.asked == ["look"]


@pytest.mark.parametrize("spec", ["me/nothing", "hf:me/nothing", "./nowhere", "a/b/c", "nothing", "hf:x"])
def test_nothing_there(spec: str, hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match="local folder or a Hugging Face repository"):
        fetch_source(spec, cache=tmp_path / "cache")


@pytest.mark.parametrize("spec", ["s3://bucket/a", "gs://bucket/a", "az://bucket/a", "https://host/a.zip"])
def test_what_comes_later_says_so(spec: str, tmp_path: Path) -> None:
    with pytest.raises(BadValue, match="not supported yet") as caught:
        fetch_source(spec, cache=tmp_path)
    assert caught.value.param == "source"


def test_revisions(hub: Hub, base: BaseModel, tmp_path: Path) -> None:
    good(base).write(hub.root / "me" / "adapter")
    with pytest.raises(BadValue, match="contradicts"):
        fetch_source("me/adapter@a", revision="b", cache=tmp_path / "cache")
    with pytest.raises(SourceNotFound, match="'v9'"):
        fetch_source("me/adapter", revision="v9", cache=tmp_path / "cache")


@pytest.mark.parametrize("problem", DOWN)
def test_no_answer(problem: Exception, hub: Hub, tmp_path: Path) -> None:
    hub.down = problem
    with pytest.raises(SourceUnreachable, match="Check the network"):
        fetch_source("me/adapter", cache=tmp_path / "cache")


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_a_damaged_download_is_not_used(damage: str, hub: Hub, base: BaseModel, tmp_path: Path) -> None:
    good(base).write(hub.root / "me" / "adapter")
    hub.damage = damage
    with pytest.raises(SourceUnreachable, match="did not arrive intact"):
        fetch_source("me/adapter", cache=tmp_path / "cache")
    hub.damage = None
    assert fetch_source("me/adapter", cache=tmp_path / "cache").is_dir()


def test_a_full_disk(hub: Hub, base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    good(base).write(hub.root / "me" / "adapter")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    with pytest.raises(StoreFull, match="me/adapter"):
        fetch_source("me/adapter", cache=tmp_path / "cache")


# Bases ------------------------------------------------------------------------------------------------------


def test_a_base_from_the_hub(hub: Hub, home: Path) -> None:
    folder = write_base(hub.root / "org" / "tiny")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "original").mkdir()
    (folder / "original" / "consolidated.safetensors").write_bytes(b"twice")
    base = open_base("org/tiny", home=home)
    assert (base.name, base.revision, base.aliases) == ("org/tiny", "c0ffee", ("tiny",))
    assert not (base.folder / "pytorch_model.bin").exists()
    hub.down = httpx.ConnectError("offline from now on")
    assert open_base("org/tiny", home=home) == base
    assert hub.asked == ["look", "fetch"]


def test_a_revision_is_a_model_of_its_own(hub: Hub, home: Path) -> None:
    write_base(hub.root / "org" / "tiny")
    first = open_base("org/tiny", home=home)
    second = open_base("org/tiny@main", home=home)
    assert first.folder != second.folder
    assert open_base("org/tiny", revision="main", home=home).folder == second.folder
    with pytest.raises(BaseNotFound, match="'v9' does not exist"):
        open_base("org/tiny@v9", home=home)


def test_a_typo_is_not_found(hub: Hub, home: Path) -> None:
    with pytest.raises(BaseNotFound, match="Check the spelling"):
        open_base("org/tinny", home=home)


@pytest.mark.parametrize("problem", DOWN)
def test_an_unreachable_base(problem: Exception, hub: Hub, home: Path) -> None:
    hub.down = problem
    with pytest.raises(BaseUnreachable, match="the embedded `smollm2-135m`"):
        open_base("org/tiny", home=home)


def test_a_base_of_pickles(hub: Hub, home: Path) -> None:
    folder = write_base(hub.root / "org" / "tiny")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BaseBroken, match="a pickle, which OneBase never opens"):
        open_base("org/tiny", home=home)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(BaseBroken, match="no safetensors weights"):
        open_base("org/tiny", home=home)


def test_a_download_that_breaks_is_continued(hub: Hub, home: Path) -> None:
    write_base(hub.root / "org" / "tiny")
    hub.damage = "flip"
    with pytest.raises(BaseBroken, match="Try again"):
        open_base("org/tiny", home=home)
    assert not (home / "cache" / "models" / "org--tiny").exists()
    hub.damage = None
    assert open_base("org/tiny", home=home).modules


def test_a_flipped_byte_in_the_cache_is_fetched_again(hub: Hub, home: Path) -> None:
    write_base(hub.root / "org" / "tiny")
    first = open_base("org/tiny", home=home)
    path = first.folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert open_base("org/tiny", home=home) == first
    assert hub.asked == ["look", "fetch"] * 2


def test_a_base_that_does_not_fit_the_disk(hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_base(hub.root / "org" / "tiny")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(StoreFull, match="are free"):
        open_base("org/tiny", home=home)
