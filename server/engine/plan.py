"""Chooses what the engine runs with, from hardware, base model and registry, and says why.

Every choice is a `Choice(value, reason)`; what the user set wins and says so. Pure: no vLLM, no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.engine.hardware import GIB, Hardware
from server.errors import StartError
from server.settings import Settings

# Ranks that vLLM accepts as --max-lora-rank (vllm.config.lora.MaxLoRARanks, 0.32).
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class Choice:
    value: Any
    reason: str


@dataclass(frozen=True, slots=True)
class Demand:
    """What the registry asks of the engine: how many adapters fit this base, and their largest rank."""

    adapters: int
    max_rank: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The choices by name, the vLLM flags and the environment of the engine's processes."""

    choices: Mapping[str, Choice]
    flags: tuple[str, ...]
    environment: Mapping[str, str]

    def __getitem__(self, key: str) -> Any:
        return self.choices[key].value


def make(
    settings: Settings,
    hardware: Hardware,
    config: Mapping[str, Any],
    demand: Demand,
    vllm_flags: Sequence[str] = (),
) -> Plan:
    """Choose for a base with Hugging Face `config`; raises StartError when memory cannot hold one sequence.

    The user's own vLLM flags come last, so that they win.
    """
    chosen: dict[str, Choice] = {}
    text = config.get("text_config") or config
    chosen["dtype"] = _dtype(settings, hardware)
    width = _BYTES.get(chosen["dtype"].value, 2)
    chosen["max_num_seqs"] = _given(settings.max_num_seqs) or (
        Choice(32, "past a batch of 32 a CPU gains little")
        if hardware.accelerator == "cpu"
        else Choice(256, "default on a GPU")
    )
    _lora(chosen, settings, hardware, text, demand, width)
    if hardware.accelerator == "cpu":
        _memory(chosen, settings, hardware, text, width)
    elif settings.max_model_len:
        chosen["max_model_len"] = Choice(settings.max_model_len, "set")
    environment = _environment(chosen, settings, hardware, vllm_flags)
    return Plan(chosen, _flags(chosen, settings, vllm_flags), environment)


def _given(value: Any) -> Choice | None:
    return None if value is None else Choice(value, "set")


def _dtype(settings: Settings, hardware: Hardware) -> Choice:
    if settings.dtype != "auto":
        return Choice(settings.dtype, "set")
    if hardware.accelerator != "cpu":
        return Choice("auto", "the checkpoint's own type on a GPU")
    if hardware.bf16:
        return Choice("bfloat16", "this CPU multiplies bfloat16 natively")
    return Choice("float32", "this CPU has no bfloat16 instructions, so float32 is several times faster")


def _lora(
    chosen: dict[str, Choice],
    settings: Settings,
    hardware: Hardware,
    text: Mapping[str, Any],
    demand: Demand,
    width: int,
) -> None:
    rank = next((r for r in RANKS if r >= max(demand.max_rank, 32)), RANKS[-1])
    why = f"largest published rank is {demand.max_rank}" if demand.max_rank else "nothing published yet"
    chosen["max_lora_rank"] = _given(settings.max_lora_rank) or Choice(
        rank, f"{why}, 32 and below always fit"
    )
    bytes_each = adapter_bytes(text, int(chosen["max_lora_rank"].value), width)
    budget = hardware.memory // 8 if hardware.accelerator == "cpu" else 4 * GIB
    fits = max(2, budget // max(1, bytes_each))
    room = max(8, demand.adapters + max(4, demand.adapters // 4))
    slots = int(min(32, room, fits))
    chosen["max_loras"] = _given(settings.max_loras) or Choice(
        slots, f"{demand.adapters} adapters published, {bytes_each / 2**20:.0f} MiB a slot at this rank"
    )
    places = max(int(chosen["max_loras"].value), min(int(fits), 4 * room))
    chosen["max_cpu_loras"] = _given(settings.max_cpu_loras) or Choice(
        places, f"an eighth of the memory holds {fits}"
    )
    if chosen["max_cpu_loras"].value < chosen["max_loras"].value:
        raise StartError(
            f"max_cpu_loras = {chosen['max_cpu_loras'].value} is below max_loras = {chosen['max_loras'].value}: "
            "an adapter in a slot also has a place in memory; raise --max-cpu-loras or lower --max-loras",
            param="max_cpu_loras",
        )


def adapter_bytes(text: Mapping[str, Any], rank: int, width: int) -> int:
    """Bytes of one adapter of `rank` on all linear layers, embeddings included, as a slot reserves them."""
    hidden = int(text.get("hidden_size") or 1024)
    layers = int(text.get("num_hidden_layers") or 24)
    inner = int(text.get("intermediate_size") or 4 * hidden)
    heads = int(text.get("num_attention_heads") or 16)
    head = int(text.get("head_dim") or hidden // heads)
    kv = int(text.get("num_key_value_heads") or heads) * head
    vocabulary = int(text.get("vocab_size") or 32000)
    one = 2 * (hidden + heads * head) + 2 * (hidden + kv) + 3 * (hidden + inner)
    return rank * width * (layers * one + 2 * (hidden + vocabulary))


def _memory(
    chosen: dict[str, Choice], settings: Settings, hardware: Hardware, text: Mapping[str, Any], width: int
) -> None:
    heads = int(text.get("num_attention_heads") or 16)
    head = int(text.get("head_dim") or int(text.get("hidden_size") or 1024) // heads)
    token = (
        2
        * int(text.get("num_hidden_layers") or 24)
        * int(text.get("num_key_value_heads") or heads)
        * head
        * width
    )
    limit = int(text.get("max_position_embeddings") or 4096)
    length = min(limit, 4096)
    chosen["max_model_len"] = _given(settings.max_model_len) or Choice(
        length, "the model's own context" if length == limit else f"enough for most, the model allows {limit}"
    )
    length = int(chosen["max_model_len"].value)
    if length > limit:
        raise StartError(
            f"max_model_len = {length} is over the model's {limit}; lower --max-model-len",
            param="max_model_len",
        )
    full = int(chosen["max_num_seqs"].value) * min(length, 1024) * token
    space = settings.kv_cache_gb
    if space is None:
        quarter = hardware.memory / 4 / GIB
        need = max(full, length * token) / GIB
        space = max(0.25, round(min(quarter, need), 2))
        why = (
            f"{chosen['max_num_seqs'].value} sequences of 1,024 tokens"
            if need <= quarter
            else "a quarter of the free memory"
        )
        chosen["kv_cache_gb"] = Choice(space, f"{why}, {token / 1024:.0f} KiB a token")
    else:
        chosen["kv_cache_gb"] = Choice(space, "set")
    if space * GIB < length * token:
        raise StartError(
            f"kv_cache_gb = {space} cannot hold one sequence of {length} tokens "
            f"({length * token / GIB:.2f} GiB needed, {hardware.memory / GIB:.1f} GiB free); "
            "lower --max-model-len or raise --kv-cache-gb",
            param="kv_cache_gb",
        )


def _environment(
    chosen: dict[str, Choice], settings: Settings, hardware: Hardware, vllm_flags: Sequence[str]
) -> dict[str, str]:
    environment = {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": {"quiet": "ERROR", "info": "INFO", "debug": "DEBUG"}[settings.engine_log],
        "TOKENIZERS_PARALLELISM": "false",
        "ONEBASE_CPU_LORA": settings.cpu_lora,
    }
    if settings.engine_log == "quiet":
        environment |= _QUIET
    if hardware.accelerator != "cpu":
        return environment
    if any(flag.startswith(_PARALLEL) for flag in vllm_flags):
        chosen["threads"] = Choice("vLLM's", "several workers: vLLM shares the cores out among them")
    else:
        chosen["threads"] = _threads(settings, hardware)
        environment["VLLM_CPU_OMP_THREADS_BIND"] = str(chosen["threads"].value)
    if settings.tcmalloc and hardware.tcmalloc:
        chosen["tcmalloc"] = Choice(hardware.tcmalloc, "faster allocation with many sequences")
        environment["LD_PRELOAD"] = hardware.tcmalloc
    elif settings.tcmalloc:
        chosen["tcmalloc"] = Choice("none", "not on this machine (Debian: libtcmalloc-minimal4)")
    return environment


# Flags of vLLM that ask for more than one worker.
_PARALLEL = (
    "--tensor-parallel-size",
    "-tp",
    "--pipeline-parallel-size",
    "-pp",
    "--data-parallel-size",
    "-dp",
)
# What vLLM and torch say at every start of a sound CPU engine (no Triton, NUMA policy, names that will change).
_QUIET = {
    "TORCH_LOGS": "-all",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "PYTHONWARNINGS": "ignore::FutureWarning,ignore::UserWarning:multiprocessing.resource_tracker",
}


def _threads(settings: Settings, hardware: Hardware) -> Choice:
    """Cores of the engine as a list such as `0,1`: every core computes only while nobody else needs one."""
    everything = ",".join(map(str, hardware.cores))
    spared = ",".join(map(str, hardware.cores[:-1] or hardware.cores))
    if settings.threads == "all":
        return Choice(everything, "set: every core")
    if settings.threads == "spare":
        return Choice(spared, "set: one core stays free")
    if settings.threads != "auto":
        return Choice(settings.threads, "set")
    if hardware.idle >= 0.9:
        return Choice(everything, f"cores are {hardware.idle:.0%} idle, so the model takes all of them")
    return Choice(
        spared, f"cores are only {hardware.idle:.0%} idle, so one stays free (spinning threads starve others)"
    )


def cores_of(threads: str) -> tuple[int, ...]:
    """`0,2-4` -> (0, 2, 3, 4); raises StartError for anything else."""
    cores: list[int] = []
    try:
        for part in threads.split(","):
            first, dash, last = part.partition("-")
            cores += range(int(first), int(last if dash else first) + 1)
    except ValueError:
        raise StartError(
            f"threads = {threads!r}: write auto, all, spare, or cores such as 0-3,6", param="threads"
        ) from None
    return tuple(cores)


def _flags(chosen: Mapping[str, Choice], settings: Settings, vllm_flags: Sequence[str]) -> tuple[str, ...]:
    flags = ["--enable-lora"]
    for key in ("dtype", "max_num_seqs", "max_loras", "max_cpu_loras", "max_lora_rank", "max_model_len"):
        if key in chosen:
            flags += ["--" + key.replace("_", "-"), str(chosen[key].value)]
    if "kv_cache_gb" in chosen:
        flags += ["--kv-cache-memory-bytes", str(int(chosen["kv_cache_gb"].value * GIB))]
    if settings.engine_log == "quiet":
        flags += ["--no-use-tqdm-on-load"]
    if settings.tool_call_parser != "none":
        flags += ["--enable-auto-tool-choice", "--tool-call-parser", settings.tool_call_parser]
    return (*flags, *vllm_flags)
