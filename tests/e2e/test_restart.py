"""The engine is killed while it answers: the client is told, the probes say so, and all of it comes back by itself."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx

from tests.e2e.asking import Asked, ask, client, verdict
from tests.e2e.commands import engine_of, left_over, until
from tests.e2e.conftest import ON_TOP, Merged, Reference, Server

LONG = {"max_tokens": 900, "temperature": 0, "stream": True, "ignore_eos": True}


def events(lines: list[str]) -> list[Any]:
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def test_a_killed_engine_comes_back(merged: Merged, merged_reference: Reference) -> None:
    server = merged.server
    all_right(server, merged_reference)
    engine = engine_of(server.process.pid)
    assert engine is not None
    before = server.metric("onebase_adapter_loads_total")

    body = {"model": ON_TOP[0], "prompt": merged_reference.prompts[1], **LONG}
    lines: list[str] = []
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as stream:
        assert stream.status_code == 200
        for line in stream.iter_lines():
            lines.append(line)
            if len(events(lines)) == 3:
                engine.kill()
    *chunks, last = events(lines)
    assert len(chunks) >= 3
    assert all(chunk["choices"] for chunk in chunks)
    assert set(last) == {"error"}  # an event that SDKs raise, not a bare end
    assert last["error"]["message"]

    until(lambda: server.get("/readyz").status_code == 503, "/readyz is 503", 3)
    assert server.get("/livez").status_code == 200
    body = {"model": ON_TOP[0], "prompt": "x"}
    refused = httpx.post(f"{server.url}/v1/completions", json=body, timeout=30)
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "not_ready"
    assert int(refused.headers["retry-after"]) >= 1

    server.wait_ready(90)
    assert server.metric("onebase_engine_restarts") == 1
    assert left_over([engine]) == []
    all_right(server, merged_reference)
    assert server.metric("onebase_adapter_loads_total") == before + len(ON_TOP)  # on demand, each once
    assert server.metric("onebase_adapters_resident") == len(ON_TOP)


def all_right(server: Server, reference: Reference) -> None:
    """The base and both adapters, at once, answer as the reference does."""
    jobs = [(name, number) for name in (*ON_TOP, "merged") for number in range(2)]

    async def answers() -> list[Asked]:
        async with client(server.url) as sdk:
            return await asyncio.gather(*(ask(sdk, name, reference.prompts[n]) for name, n in jobs))

    for (name, number), asked in zip(jobs, asyncio.run(answers()), strict=True):
        found = verdict(reference, name, number, asked)
        assert found.equal, f"{name}, prompt {number}: {found.mismatch}"
