"""SIGTERM lets running answers finish, SIGINT during the start leaves at once; neither leaves a process behind."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import httpx
import pytest

from adapters.base import BaseModel
from tests.e2e.commands import engine_of, family, left_over, until
from tests.e2e.conftest import ON_TOP, Merged, start

TOKENS = 60


def test_a_stream_is_finished_before_the_end(merged: Merged) -> None:
    """The last test that needs this server: it ends here."""
    server = merged.server
    processes = family(server.process.pid)
    assert len(processes) >= 2  # the engine is one of its own
    logged = len(server.log.read_text())
    body = {
        "model": ON_TOP[0],
        "prompt": "The sea is",
        "max_tokens": TOKENS,
        "temperature": 0,
        "stream": True,
        "ignore_eos": True,
        "stream_options": {"include_usage": True},
    }
    lines: list[str] = []
    turned_away = False
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as stream:
        for line in stream.iter_lines():
            if not line.startswith("data: "):
                continue
            lines.append(line.removeprefix("data: "))
            if len(lines) == 2:
                server.process.send_signal(signal.SIGTERM)
            if len(lines) == 8:
                turned_away = not takes_requests(server.url)
    *chunks, usage, done = lines
    assert done == "[DONE]"
    assert json.loads(usage)["usage"]["completion_tokens"] == TOKENS
    assert json.loads(chunks[-1])["choices"][0]["finish_reason"] == "length"
    assert turned_away
    assert server.process.wait(30) == 0
    assert left_over(processes) == []
    assert "Traceback" not in server.log.read_text()[logged:]


def takes_requests(url: str) -> bool:
    try:
        return httpx.post(f"{url}/v1/completions", json={"prompt": "x"}, timeout=10).status_code != 503
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("moment", ["imports", "engine process"])
def test_an_interrupt_during_the_start(
    moment: str, base: BaseModel, shared_home: Path, tmp_path: Path
) -> None:
    """Ctrl-C while vLLM is imported, and when its engine process is there and loads the model."""
    log = tmp_path / "server.log"
    server = start(shared_home, tmp_path / "registry", log, "--max-model-len", "1024")
    process = server.process
    try:
        until(lambda: process.poll() is not None or "engine:" in log.read_text(), "the start was begun", 60)
        if moment == "engine process":
            until(lambda: process.poll() is not None or engine_of(process.pid) is not None, "an engine", 120)
        assert process.poll() is None, log.read_text()
        processes = family(process.pid)
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        assert process.wait(10) == 130
        assert time.monotonic() - began < 5
        assert left_over(processes) == []
    finally:
        for one in family(process.pid):
            one.kill()
    said = log.read_text()
    assert "Traceback" not in said
    assert said.splitlines()[-1] == "interrupted before the engine was up"
