"""A faster start on CPU: one engine process instead of two, forked from a process that imported while we did.

Importing vLLM costs each process 12 to 20 CPU-seconds, and stock vLLM does it three times in a row: here, in the
engine core, in the worker. Instead
- a fork server begins with the engine's imports at once, on the other core, while this process does its own; a
  restart after a death forks from it again and imports nothing;
- the worker runs inside the engine core. vLLM forbids that on CPU since the threads' binding is read when the
  process starts (vllm/platforms/cpu.py); it is, so the fork server gets the binding in its environment.
The engine stays a process of its own: its death does not take the front end along.
"""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
import multiprocessing.forkserver
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_PRELOADED = (
    "vllm.v1.engine.core",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.worker.cpu_worker",
    "vllm.model_executor.models.llama",
    "vllm.model_executor.model_loader",
    "server.engine.cpu_lora",
)


def thread_environment(cores: tuple[int, ...]) -> dict[str, str]:
    """OpenMP's binding of one engine process to `cores`, and torch's own OpenMP preloaded so that it holds.

    Without the preload only one of the bound cores is used (vLLM issue 27369).
    """
    preload = [path for path in (os.environ.get("LD_PRELOAD"), _torch_openmp()) if path]
    return {
        "OMP_NUM_THREADS": str(len(cores)),
        "GOMP_CPU_AFFINITY": " ".join(map(str, cores)),
        **({"LD_PRELOAD": ":".join(preload)} if preload else {}),
    }


def _torch_openmp() -> str | None:
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    package = Path(spec.origin).parent
    for folder in (package.parent / "torch.libs", package / "lib"):
        for library in sorted(folder.glob("libgomp*.so*")):
            return str(library)
    return None


def begin(environment: Mapping[str, str]) -> None:
    """Start the fork server with `environment` beside ours; its imports run while the caller goes on."""
    multiprocessing.set_forkserver_preload(list(_PRELOADED))
    with _variables(environment):
        multiprocessing.forkserver.ensure_running()


@contextlib.contextmanager
def one_process(config: Any) -> Iterator[None]:
    """Inside the block, vLLM starts the engine core from the fork server, with the worker in it.

    Leaves `config` alone, and vLLM to its own ways, when more than one worker is asked for.
    """
    from vllm.v1.engine import utils

    if config.parallel_config.world_size != 1 or config.parallel_config.data_parallel_size != 1:
        yield
        return
    config.parallel_config.distributed_executor_backend = "uni"
    stock = utils.get_mp_context
    utils.get_mp_context = lambda: multiprocessing.get_context("forkserver")
    try:
        yield
    finally:
        utils.get_mp_context = stock


@contextlib.contextmanager
def _variables(environment: Mapping[str, str]) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in environment}
    os.environ.update(environment)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
