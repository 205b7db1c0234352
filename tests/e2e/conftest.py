"""One real base, eight real adapters, the answers that transformers and peft give, and real servers to ask.

A server is the command `onebase serve` in a process of its own, as a user starts it. Three are needed: one with a
slot for everybody (`roomy`), one with fewer slots and places than adapters (`tight`), and one on a merged model,
which starts without adapters (`merged`). test_restart kills the engine of the last, and test_shutdown, which comes
after all that ask it, stops it for good; no test does that to `roomy`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from adapters.base import BaseModel, open_base
from adapters.registry import Registry
from adapters.store import LocalStore
from tests.e2e.commands import ONEBASE, run
from tests.e2e.made_adapters import make_adapter
from training.reference import Expected, Job, Request, ask

PROMPTS = (
    "The capital of France is",
    "Once upon a time there was a small",
    "def fibonacci(n):",
    "Three things that I like about autumn are",
)
TOKENS = 12
NAMES = tuple(f"made-{number}" for number in range(8))
# Different ranks, modules and scalings side by side in one batch.
SHAPES: tuple[dict[str, object], ...] = (
    {"rank": 8},
    {"rank": 16},
    {"rank": 4, "targets": ("q_proj", "v_proj"), "size": 0.08},
    {"rank": 8, "use_rslora": True, "size": 0.01},
    {"rank": 8, "targets": ("gate_proj", "up_proj", "down_proj")},
    {"rank": 16, "targets": ("o_proj", "down_proj"), "size": 0.03},
    {"rank": 8},
    {"rank": 2, "size": 0.04},
)


@pytest.fixture(scope="session")
def shared_home() -> Path:
    return Path(os.environ["ONEBASE_HOME"])


@pytest.fixture(scope="session")
def base(shared_home: Path) -> BaseModel:
    return open_base("smollm2-135m", home=shared_home)


@pytest.fixture(scope="session")
def folders(base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapter folders by name, as a user would bring them."""
    root = tmp_path_factory.mktemp("made")
    made = {}
    for seed, (name, shape) in enumerate(zip(NAMES, SHAPES, strict=True)):
        made[name] = make_adapter(root / name, base.modules, seed=seed, **shape)  # type: ignore[arg-type]
    return made


@pytest.fixture(scope="session")
def registry(
    base: BaseModel, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, shared_home: Path
) -> Registry:
    """A registry with version 1 of every adapter; its store lies in `registry.store`."""
    store = LocalStore(tmp_path_factory.mktemp("registry"))
    registry = Registry(store, cache=shared_home / "cache")
    for name, folder in folders.items():
        registry.publish(name, folder, base, by="e2e")
    return registry


@dataclass(frozen=True)
class Reference:
    """What transformers + peft answer: `answers[name][i]` for prompt `prompts[i]` (token ids); "base" is one."""

    prompts: list[list[int]]
    answers: dict[str, list[Expected]]
    end: list[int]


@pytest.fixture(scope="session")
def reference(base: BaseModel, folders: dict[str, Path]) -> Reference:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(base.folder / "tokenizer.json"))
    prompts = [tokenizer.encode(text).ids for text in PROMPTS]
    jobs = [Job(None, prompts), *(Job(folder, prompts) for folder in folders.values())]
    found = ask(Request(base.folder, jobs, max_tokens=TOKENS))
    return Reference(prompts, dict(zip(("base", *folders), found.jobs, strict=True)), found.end)


@dataclass
class Server:
    """A running `onebase serve`."""

    port: int
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=30)

    def metric(self, name: str) -> float:
        """Sum of a series over its labels."""
        lines = self.get("/metrics").text.splitlines()
        return sum(
            float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((name + " ", name + "{"))
        )

    def wait_ready(self, timeout: float = 240) -> None:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                pytest.fail(
                    f"the server ended with {self.process.returncode}:\n{self.log.read_text()[-3000:]}"
                )
            with contextlib.suppress(httpx.TransportError):
                if self.get("/readyz").status_code == 200:
                    return
            time.sleep(0.25)
        pytest.fail(f"the server was not ready within {timeout} s:\n{self.log.read_text()[-3000:]}")


def start(home: Path, store: Path, log: Path, *flags: str) -> Server:
    """`onebase serve FLAGS`, not waited for."""
    port = free_port()
    # One core stays free for the tests themselves, and float32 is what the reference computes in.
    always = ("--port", str(port), "--store", str(store), "--dtype", "float32", "--threads", "spare")
    environment = {**os.environ, "ONEBASE_HOME": str(home)}
    with log.open("wb") as out:
        process = subprocess.Popen(
            [ONEBASE, "serve", *flags, *always], stdout=out, stderr=subprocess.STDOUT, env=environment
        )
    return Server(port, process, log)


@contextlib.contextmanager
def serving(home: Path, store: Path, log: Path, *flags: str) -> Iterator[Server]:
    """`onebase serve FLAGS` until the block ends; then it must stop by itself on SIGTERM."""
    server = start(home, store, log, *flags)
    process = server.process
    try:
        server.wait_ready()
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            pytest.fail(f"the server did not stop:\n{log.read_text()[-3000:]}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def roomy(
    registry: Registry, shared_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A slot for each of the eight adapters."""
    log = tmp_path_factory.mktemp("roomy") / "server.log"
    store = registry.store.root  # type: ignore[attr-defined]
    with serving(shared_home, store, log, "--max-loras", "8", "--max-model-len", "1024") as server:
        yield server


@pytest.fixture(scope="module")
def tight(
    registry: Registry, shared_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """Eight adapters over two slots and four places in memory."""
    log = tmp_path_factory.mktemp("tight") / "server.log"
    store = registry.store.root  # type: ignore[attr-defined]
    flags = ("--max-loras", "2", "--max-cpu-loras", "4", "--max-model-len", "1024", "--slot-wait-s", "0.5")
    with serving(shared_home, store, log, *flags) as server:
        yield server


MERGED = "made-1"
ON_TOP = ("made-2", "made-5")


@dataclass(frozen=True)
class Merged:
    """A server of the full model that the base and one adapter were merged into, and its own registry."""

    server: Server
    base: BaseModel
    registry: Registry


@pytest.fixture(scope="session")
def merged_base(
    base: BaseModel, registry: Registry, shared_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> BaseModel:
    folder = tmp_path_factory.mktemp("merge") / "merged"
    store = registry.store.root  # type: ignore[attr-defined]
    done = run("adapters", "merge", f"{MERGED}@1", "--out", str(folder), "--store", str(store))
    assert done.returncode == 0, done.stderr
    return open_base(str(folder), home=shared_home, name="merged")


@pytest.fixture(scope="session")
def merged_reference(merged_base: BaseModel, folders: dict[str, Path], reference: Reference) -> Reference:
    """What transformers + peft answer on the merged model: alone ("merged"), and with adapters on top of it."""
    jobs = [Job(None, reference.prompts), *(Job(folders[name], reference.prompts) for name in ON_TOP)]
    found = ask(Request(merged_base.folder, jobs, max_tokens=TOKENS))
    return Reference(reference.prompts, dict(zip(("merged", *ON_TOP), found.jobs, strict=True)), found.end)


@pytest.fixture(scope="session")
def merged(
    merged_base: BaseModel,
    merged_reference: Reference,  # computed before the engine takes the cores
    folders: dict[str, Path],
    shared_home: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Merged]:
    """Started on an empty store; the adapters on top are published while it runs."""
    root = tmp_path_factory.mktemp("merged")
    registry = Registry(LocalStore(root / "registry"), cache=shared_home / "cache")
    flags = (str(merged_base.folder), "--name", "merged", "--max-model-len", "1024")
    with serving(shared_home, root / "registry", root / "server.log", *flags) as server:
        for name in ON_TOP:
            registry.publish(name, folders[name], merged_base, by="e2e")
        yield Merged(server, merged_base, registry)
