"""The scripts that build the environment and the locks: what they decide, without building anything."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "requirements"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def install() -> Any:
    return load("install")


@pytest.fixture
def lock(install: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(sys.modules, "install", install)
    return load("lock")


@pytest.fixture
def pip(install: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes `pip config list` answer with these lines, and the environment hold nothing for uv."""
    for name in ("UV_FIND_LINKS", "UV_DEFAULT_INDEX", "SSL_CERT_FILE", "UV_HTTP_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)

    def configure(*lines: str) -> None:
        def run(command: list[Any], **_: Any) -> subprocess.CompletedProcess[str]:
            return subprocess.CompletedProcess(command, 0, "".join(f"{line}\n" for line in lines), "")

        monkeypatch.setattr(install.subprocess, "run", run)

    return configure


def test_uv_is_told_what_pip_knows(install: Any, pip: Any) -> None:
    pip(
        ":env:.cert='/ca.pem'",
        "global.find-links='/wheels /more'",
        "global.index-url='https://mirror/simple'",
    )
    environment, options = install.uv_settings(Path("python"))
    assert environment["UV_FIND_LINKS"] == "/wheels,/more"
    assert environment["UV_DEFAULT_INDEX"] == "https://mirror/simple"
    assert environment["SSL_CERT_FILE"] == "/ca.pem"
    assert options == []


def test_without_a_folder_of_wheels_torch_comes_from_its_cpu_builds(install: Any, pip: Any) -> None:
    pip()
    environment, options = install.uv_settings(Path("python"))
    assert "UV_FIND_LINKS" not in environment
    assert options == ["--torch-backend", "cpu"]


def test_the_environment_wins_over_pips_files_and_uvs_own_over_both(
    install: Any, pip: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_HTTP_TIMEOUT", "7")
    pip("global.cert='/file.pem'", ":env:.cert='/env.pem'", "user.cert='/user.pem'", ":env:.timeout='9'")
    environment, _ = install.uv_settings(Path("python"))
    assert environment["SSL_CERT_FILE"] == "/env.pem"
    assert environment["UV_HTTP_TIMEOUT"] == "7"


@pytest.mark.parametrize(
    ("version", "good"), [((3, 10), False), ((3, 11), True), ((3, 13), True), ((3, 14), False)]
)
def test_only_pythons_with_an_engine_are_accepted(
    install: Any, monkeypatch: pytest.MonkeyPatch, version: tuple[int, int], good: bool
) -> None:
    monkeypatch.setattr(install.sys, "version_info", version)
    if good:
        install.require_python()
        return
    with pytest.raises(install.InstallError, match=r"use 3\.11, 3\.12 or 3\.13"):
        install.require_python()


def test_a_folder_that_is_no_environment_is_left_alone(install: Any, tmp_path: Path) -> None:
    precious = tmp_path / "thesis.txt"
    precious.write_text("mine", encoding="utf-8")
    with pytest.raises(install.InstallError, match="not a virtual environment"):
        install.create(tmp_path)
    assert precious.read_text(encoding="utf-8") == "mine"


def test_an_up_to_date_environment_is_not_touched(
    install: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / install.STAMP).write_text(install.fingerprint(), encoding="utf-8")
    monkeypatch.setattr(install, "create", lambda folder: pytest.fail("rebuilt"))
    assert install.main([str(tmp_path)]) == 0


WHEEL = {"url": "https://mirror/a/b/pure-1.0-py3-none-any.whl", "hashes": {"sha256": "0" * 64}}
LINUX = {
    "url": "https://mirror/fast-1.0-cp311-abi3-manylinux_2_28_x86_64.whl",
    "hashes": {"sha256": "1" * 64},
}


def test_a_lock_line_has_a_hash_only_where_one_file_serves_everywhere(lock: Any) -> None:
    pure = {"name": "pure", "version": "1.0", "wheels": [WHEEL]}
    assert lock.line(pure) == f"pure==1.0 --hash=sha256:{'0' * 64}\n"
    assert lock.line({"name": "fast", "version": "1.0", "wheels": [WHEEL, LINUX]}) == "fast==1.0\n"
    assert lock.line({"name": "torch", "version": "2.13.0+cpu", "wheels": [LINUX]}) == "torch==2.13.0\n"


@pytest.mark.parametrize(
    ("full", "short"),
    [
        ("sys_platform == 'linux' and python_full_version < '3.14'", None),
        ("platform_machine == 'x86_64' and sys_platform == 'linux'", "platform_machine == 'x86_64'"),
        ("python_full_version < '3.12'", "python_version == '3.11'"),
        (
            "platform_machine == 'aarch64' and python_full_version >= '3.12'",
            "platform_machine == 'aarch64' and (python_version == '3.12' or python_version == '3.13')",
        ),
    ],
)
def test_a_marker_is_written_in_its_shortest_form(lock: Any, full: str, short: str | None) -> None:
    assert lock.marker({"marker": full}) == short


def test_a_package_without_a_wheel_for_a_supported_machine_is_refused(lock: Any) -> None:
    missing = "3.11 aarch64, 3.12 aarch64, 3.13 aarch64"
    problem = f"fast 1.0 has no wheel for {missing}"
    assert lock.check({"name": "fast", "version": "1.0", "wheels": [LINUX]}) == [problem]
    where = "platform_machine == 'x86_64'"
    assert lock.check({"name": "fast", "version": "1.0", "wheels": [LINUX], "marker": where}) == []
    assert lock.check({"name": "slow", "version": "1.0"}) == [
        "slow has no wheel: it would be compiled at installation"
    ]
