"""The machine as it is read: plausible here, and bounded by a container's limit."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.engine import hardware


def test_this_machine_is_read_plausibly() -> None:
    found = hardware.detect(sample_s=0.02)
    assert found.cores
    assert list(found.cores) == sorted(set(found.cores))
    assert 0 <= found.idle <= 1
    assert 64 << 20 < found.memory < 1 << 50
    assert found.accelerator in ("cpu", "cuda")
    if found.tcmalloc:
        assert Path(found.tcmalloc).is_file()


def test_without_proc_stat_the_load_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_cpu_times", lambda cores: None)
    assert hardware._idle_share(0, (0,)) == 0.5


def test_idle_is_the_share_of_the_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = iter([(100, 1000), (175, 1100)])
    monkeypatch.setattr(hardware, "_cpu_times", lambda cores: next(samples))
    assert hardware._idle_share(0, (0, 1)) == pytest.approx(0.75)


def test_a_containers_quota_bounds_the_cores(tmp_path: Path) -> None:
    limit = tmp_path / "cpu.max"
    for text, cores in (("200000 100000\n", 2), ("50000 100000\n", 0), ("max 100000\n", None), ("odd", None)):
        limit.write_text(text)
        assert hardware._core_quota(limit) == cores
    assert hardware._core_quota(tmp_path / "missing") is None
