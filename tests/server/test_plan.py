"""The plan: choices that fit the machine, each with its reason, and what the user set wins."""

from __future__ import annotations

from dataclasses import replace

import pytest

from server.engine.hardware import GIB, Hardware
from server.engine.plan import Demand, adapter_bytes, make
from server.errors import StartError
from server.settings import Settings

CONFIG = {
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
}
LAPTOP = Hardware("cpu", (0, 1), idle=0.95, memory=16 * GIB, bf16=False, tcmalloc="/lib/tcmalloc.so")


def test_a_laptop_gets_float32_all_idle_cores_and_room_for_growth() -> None:
    plan = make(Settings(), LAPTOP, CONFIG, Demand(3, 8))
    assert plan["dtype"] == "float32"
    assert plan["threads"] == "0,1"
    assert plan["max_loras"] >= 8
    assert plan["max_cpu_loras"] >= plan["max_loras"]
    assert plan["max_lora_rank"] == 32
    assert plan.environment["LD_PRELOAD"] == "/lib/tcmalloc.so"
    assert all(choice.reason for choice in plan.choices.values())


def test_a_busy_machine_keeps_a_core_free() -> None:
    plan = make(Settings(), replace(LAPTOP, idle=0.4), CONFIG, Demand(0, 0))
    assert plan["threads"] == "0"
    assert plan.environment["VLLM_CPU_OMP_THREADS_BIND"] == "0"


def test_bfloat16_only_where_the_cpu_multiplies_it() -> None:
    assert make(Settings(), replace(LAPTOP, bf16=True), CONFIG, Demand(0, 0))["dtype"] == "bfloat16"


def test_the_largest_published_rank_is_served() -> None:
    assert make(Settings(), LAPTOP, CONFIG, Demand(5, 100))["max_lora_rank"] == 128


def test_what_is_set_wins_and_is_passed_on() -> None:
    settings = Settings(
        max_loras=2, max_cpu_loras=4, max_lora_rank=8, dtype="float16", max_model_len=512, kv_cache_gb=0.5
    )
    plan = make(settings, LAPTOP, CONFIG, Demand(50, 64), ["--enforce-eager"])
    flags = " ".join(plan.flags)
    for part in (
        "--max-loras 2",
        "--max-cpu-loras 4",
        "--max-lora-rank 8",
        "--dtype float16",
        "--max-model-len 512",
    ):
        assert part in flags
    assert f"--kv-cache-memory-bytes {GIB // 2}" in flags
    assert flags.endswith("--enforce-eager")
    assert plan.choices["max_loras"].reason == "set"


def test_little_memory_means_fewer_slots_and_a_smaller_cache() -> None:
    small = make(Settings(), replace(LAPTOP, memory=2 * GIB), CONFIG, Demand(200, 16))
    large = make(Settings(), LAPTOP, CONFIG, Demand(200, 16))
    assert small["max_loras"] < large["max_loras"]
    assert small["kv_cache_gb"] < large["kv_cache_gb"]
    width = adapter_bytes(CONFIG, small["max_lora_rank"], 4)
    assert small["max_cpu_loras"] * width <= 2 * GIB // 8 + 2 * width


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (Settings(max_loras=8, max_cpu_loras=4), "max_cpu_loras = 4 is below max_loras = 8"),
        (Settings(max_model_len=9000), "over the model's 8192"),
        (Settings(kv_cache_gb=0.01), "cannot hold one sequence"),
    ],
)
def test_impossible_settings_are_refused_with_the_mend(settings: Settings, says: str) -> None:
    with pytest.raises(StartError) as refused:
        make(settings, LAPTOP, CONFIG, Demand(0, 0))
    assert says in str(refused.value)


def test_a_gpu_keeps_vllms_own_memory_and_type() -> None:
    plan = make(Settings(), replace(LAPTOP, accelerator="cuda"), CONFIG, Demand(3, 8))
    assert plan["dtype"] == "auto"
    assert "--kv-cache-memory-bytes" not in plan.flags
    assert "LD_PRELOAD" not in plan.environment


def test_several_workers_share_the_cores_by_vllms_own_rule() -> None:
    plan = make(Settings(), LAPTOP, CONFIG, Demand(0, 0), ["--tensor-parallel-size", "2"])
    assert "VLLM_CPU_OMP_THREADS_BIND" not in plan.environment
    assert "several workers" in plan.choices["threads"].reason
