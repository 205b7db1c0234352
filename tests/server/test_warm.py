"""The fork server's environment, and when vLLM is left to its own processes."""

from __future__ import annotations

import multiprocessing
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from server.engine import warm
from server.engine.plan import cores_of
from server.errors import StartError


def test_cores_are_lists_and_ranges() -> None:
    assert cores_of("0") == (0,)
    assert cores_of("0,2-4,7") == (0, 2, 3, 4, 7)


@pytest.mark.parametrize("text", ["", "many", "0-", "1;2"])
def test_other_words_are_refused_with_the_mend(text: str) -> None:
    with pytest.raises(StartError, match="auto, all, spare"):
        cores_of(text)


def test_threads_are_bound_to_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/lib/tcmalloc.so")
    monkeypatch.setattr(warm, "_torch_openmp", lambda: "/torch/libgomp.so")
    environment = warm.thread_environment((0, 3))
    assert environment["OMP_NUM_THREADS"] == "2"
    assert environment["GOMP_CPU_AFFINITY"] == "0 3"
    assert environment["LD_PRELOAD"] == "/lib/tcmalloc.so:/torch/libgomp.so"


@pytest.fixture
def engine_utils(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stands for `vllm.v1.engine.utils`, whose `get_mp_context` decides how the engine core is started."""
    utils: Any = ModuleType("vllm.v1.engine.utils")
    utils.get_mp_context = lambda: multiprocessing.get_context("spawn")
    package: Any = ModuleType("vllm.v1.engine")
    package.utils = utils
    for name in ("vllm", "vllm.v1"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "vllm.v1.engine", package)
    monkeypatch.setitem(sys.modules, "vllm.v1.engine.utils", utils)
    return utils


def config(**parallel: Any) -> Any:
    chosen = {"world_size": 1, "data_parallel_size": 1, "distributed_executor_backend": "mp", **parallel}
    return SimpleNamespace(parallel_config=SimpleNamespace(**chosen))


def test_one_worker_runs_in_the_engine_and_forks(engine_utils: Any) -> None:
    wanted = config()
    with warm.one_process(wanted):
        assert wanted.parallel_config.distributed_executor_backend == "uni"
        assert engine_utils.get_mp_context().get_start_method() == "forkserver"
    assert engine_utils.get_mp_context().get_start_method() == "spawn"


@pytest.mark.parametrize("parallel", [{"world_size": 2}, {"data_parallel_size": 2}])
def test_several_workers_are_vllms_own_affair(engine_utils: Any, parallel: dict[str, int]) -> None:
    wanted = config(**parallel)
    with warm.one_process(wanted):
        assert wanted.parallel_config.distributed_executor_backend == "mp"
        assert engine_utils.get_mp_context().get_start_method() == "spawn"
