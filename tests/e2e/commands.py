"""The command `onebase` as a shell runs it: a process, its exit code, what it prints, and what it leaves running."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

ONEBASE = str(Path(sys.executable).with_name("onebase"))


@dataclass(frozen=True)
class Refusal:
    """How a command ended that refused: the exit code, and its line without the leading `error: `."""

    code: int
    line: str
    said_before: tuple[str, ...]


def run(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ONEBASE, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=cwd,
        env={**os.environ, **environment},
    )


def refusal(*arguments: str, cwd: Path | None = None, **environment: str) -> Refusal:
    """Run a command that must refuse: one line says why, it is the last, and there is no stack trace."""
    done = run(*arguments, cwd=cwd, **environment)
    lines = done.stderr.splitlines()
    assert done.returncode != 0, done.stdout
    assert "Traceback" not in done.stderr, done.stderr
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:], done.stderr
    return Refusal(done.returncode, lines[-1].removeprefix("error: "), tuple(lines[:-1]))


def family(pid: int) -> list[psutil.Process]:
    """A process and everything that it started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    return []


def engine_of(pid: int) -> psutil.Process | None:
    """The engine core that a server started: vLLM names the process after what it is."""
    for process in family(pid):
        with contextlib.suppress(psutil.Error):
            if "VLLM::EngineCore" in " ".join(process.cmdline()):
                return process
    return None


def left_over(processes: Sequence[psutil.Process], timeout: float = 10) -> list[str]:
    """Those that still run after `timeout` seconds; a zombie has ended, only nobody asked for its exit code."""
    deadline = time.monotonic() + timeout
    while True:
        alive = []
        for process in processes:
            with contextlib.suppress(psutil.Error):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    alive.append(f"{process.pid} {' '.join(process.cmdline())[:120]}")
        if not alive or time.monotonic() > deadline:
            return alive
        time.sleep(0.1)


def until(true: Callable[[], bool], what: str, timeout: float) -> None:
    for _ in _ticks(timeout):
        if true():
            return
    pytest.fail(f"not within {timeout:.0f} s: {what}")


def _ticks(timeout: float) -> Iterator[None]:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        yield
        time.sleep(0.05)
