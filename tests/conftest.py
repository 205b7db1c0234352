"""What every test shares: a home of its own, tiers by folder, and no network in the unit tier.

tests/e2e is the tier `e2e` (real engine), tests/long is `long` (outside the gate), everything else is
`unit`: fakes and tiny files, a minute for one test at most, every warning an error (pyproject.toml), no
address but this machine's.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parent
LIMITS = {"unit": 60, "e2e": 600, "long": 3600}
# With the real engine, warnings of other people's code are theirs; those of ours stay errors.
REAL_ENGINE_WARNINGS = ("default", r"error:::(adapters|training|server|deploy)(\.|$)")
KEPT_HOME = "ONEBASE_TEST_HOME"
LOCAL = ("127.", "::1", "localhost", "0.0.0.0")


def pytest_configure(config: pytest.Config) -> None:
    """Give the session a home of its own, before anything reads it.

    ONEBASE_TEST_HOME names one to keep between runs (converted models are then not made again).
    """
    kept = os.environ.get(KEPT_HOME)
    home = Path(kept) if kept else Path(tempfile.mkdtemp(prefix="onebase-tests-"))
    home.mkdir(parents=True, exist_ok=True)
    before = {name: value for name, value in os.environ.items() if name.startswith("ONEBASE_")}
    for name in before:
        del os.environ[name]
    os.environ["ONEBASE_HOME"] = str(home)

    def restore() -> None:
        os.environ.pop("ONEBASE_HOME", None)
        os.environ.update(before)
        if not kept:
            shutil.rmtree(home, ignore_errors=True)

    config.add_cleanup(restore)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with the tier of its folder, that tier's time limit and its meaning of warnings."""
    for item in items:
        tier = tier_of(item.path)
        item.add_marker(tier)
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(LIMITS[tier]))
        if tier != "unit":
            for rule in REAL_ENGINE_WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(rule))


def tier_of(path: Path) -> str:
    """The tier that a test file's folder puts it in."""
    folder = path.relative_to(TESTS).parts[0]
    return folder if folder in ("e2e", "long") else "unit"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty ONEBASE_HOME for one test."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("ONEBASE_HOME", str(folder))
    return folder


@pytest.fixture(autouse=True)
def _no_network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Refuse every connection of a unit test that would leave this machine."""
    if request.node.get_closest_marker("unit") is None:
        yield
        return
    connect, connect_ex, look_up = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def refuse(host: object) -> None:
        name = host.decode() if isinstance(host, bytes) else host
        if name and not str(name).startswith(LOCAL):
            pytest.fail(f"a unit test reached for the network: {name}")

    def guarded_connect(self: socket.socket, address: Any) -> None:
        refuse(address[0] if isinstance(address, tuple) else None)
        connect(self, address)

    def guarded_connect_ex(self: socket.socket, address: Any) -> int:
        refuse(address[0] if isinstance(address, tuple) else None)
        return connect_ex(self, address)

    def guarded_look_up(host: Any, *args: Any, **kwargs: Any) -> Any:
        refuse(host)
        return look_up(host, *args, **kwargs)

    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
    monkeypatch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
    monkeypatch.setattr(socket, "getaddrinfo", guarded_look_up)
    yield
