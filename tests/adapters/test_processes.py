"""Several processes on one store: concurrent publishers and aliases, and publishers that are killed."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Sequence
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from adapters import disk
from adapters.base import BaseModel, open_base
from adapters.registry import Registry
from adapters.store import LocalStore
from tests.bad_adapters import good

ROUNDS = 10


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Processes that start in milliseconds, since the imports are done once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def registry_at(home: Path) -> Registry:
    return Registry(LocalStore(home / "registry"), cache=home / "cache")


def publish_all(home: Path, base_folder: str, folders: list[str], ready: str) -> None:
    base = open_base(base_folder, home=home)
    registry = registry_at(home)
    Path(ready).touch()
    for folder in folders:
        registry.publish("a", Path(folder), base)


def move_alias(home: Path, versions: list[int]) -> None:
    registry = registry_at(home)
    for version in versions:
        registry.set_alias("a", "production", version)


def adapters(base: BaseModel, folder: Path, count: int) -> list[str]:
    return [str(good(base, seed).write(folder / str(seed))) for seed in range(count)]


def test_publishers_get_numbers_of_their_own(
    processes: ForkServerContext, base: BaseModel, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    folders = adapters(base, tmp_path / "made", 12)
    workers = [
        processes.Process(
            target=publish_all, args=(home, str(base.folder), folders[n::3], str(tmp_path / f"r{n}"))
        )
        for n in range(3)
    ]
    run(workers)
    versions = registry_at(home).versions("a")
    assert [one.version for one in versions] == list(range(1, 13))
    assert len({one.digest for one in versions}) == 12
    assert list((home / "registry" / "incoming").iterdir()) == []


def test_alias_moves_are_all_kept(processes: ForkServerContext, base: BaseModel, tmp_path: Path) -> None:
    home = tmp_path / "home"
    registry = registry_at(home)
    for folder in adapters(base, tmp_path / "made", 6):
        registry.publish("a", Path(folder), base)
    run([processes.Process(target=move_alias, args=(home, [2 * n + 1, 2 * n + 2] * 5)) for n in range(3)])
    history = registry.history("a", "production")
    assert [entry.seq for entry in history] == list(range(1, len(history) + 1))
    assert len(history) > 10
    assert registry.resolve("a").version == history[-1].version


def run(workers: Sequence[BaseProcess]) -> None:
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0


def test_a_killed_publisher_leaves_no_half_version(
    processes: ForkServerContext, base: BaseModel, tmp_path: Path
) -> None:
    """kill -9 at random moments: what is there is whole, and the next publisher goes on."""
    home = tmp_path / "home"
    folders = adapters(base, tmp_path / "made", 40)
    numbers = random.Random(7)
    published = killed = 0
    for turn in range(ROUNDS):
        ready = tmp_path / f"ready-{turn}"
        # Another order each time, so that every publication is of new content.
        mine = folders[turn:] + folders[:turn]
        worker = processes.Process(target=publish_all, args=(home, str(base.folder), mine, str(ready)))
        worker.start()
        while not ready.exists():
            assert worker.is_alive() or ready.exists()
            time.sleep(0.001)
        time.sleep(numbers.uniform(0, 0.1))
        if worker.pid is not None and worker.is_alive():
            os.kill(worker.pid, signal.SIGKILL)
            killed += 1
        worker.join(30)
        published = look_over(home, at_least=published)
    assert killed > ROUNDS // 2
    assert published > 0
    incoming = home / "registry" / "incoming"
    LocalStore(home / "registry").sweep(older_than=-1)
    assert list(incoming.iterdir()) == []
    assert look_over(home, at_least=published) == published


def look_over(home: Path, at_least: int) -> int:
    """Read everything; returns the number of versions."""
    registry = registry_at(home)
    count = 0
    for name in registry.names():
        versions = registry.versions(name)
        assert [one.version for one in versions] == list(range(1, len(versions) + 1))
        for one in versions:
            folder = registry.materialize(one)
            for file in one.files:
                assert disk.sha256_file(folder / file.path) == file.sha256
        count += len(versions)
    assert count >= at_least
    return count
