"""The benchmark of mixed batches: which models it asks, and ratios taken round by round."""

from __future__ import annotations

import json

import httpx
import pytest

from deploy.benchmark import mixed_batch


def test_rounds_alternate_and_the_first_only_warms_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, str]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        asked.append((request.url.host, body["model"]))
        return httpx.Response(200, json={"usage": {"completion_tokens": body["max_tokens"]}})

    real = httpx.AsyncClient

    def fake(**options: object) -> httpx.AsyncClient:
        return real(transport=httpx.MockTransport(answer))

    monkeypatch.setattr(httpx, "AsyncClient", fake)
    arguments = ["http://one", "http://two", "--adapters", "x", "y", "--concurrency", "4", "--rounds", "2"]
    assert mixed_batch.main(arguments) == 0
    document = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert set(document["cells"]) == {"base only", "one adapter", "2 adapters", "base and adapters"}
    assert all(len(cell["rounds"]) == 2 for cell in document["cells"].values())
    base_only = asked[:24]  # 3 rounds (one warms up) of 4 requests on each of two servers
    assert [host for host, _ in base_only] == (["one"] * 4 + ["two"] * 4) * 3
    assert {model for _, model in base_only} == {"smollm2-135m"}
    assert {model for _, model in asked[-24:]} == {"smollm2-135m", "x", "y"}


def test_a_refusing_server_ends_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    real = httpx.AsyncClient

    def fake(**options: object) -> httpx.AsyncClient:
        return real(transport=httpx.MockTransport(lambda request: httpx.Response(404)))

    monkeypatch.setattr(httpx, "AsyncClient", fake)
    with pytest.raises(httpx.HTTPStatusError, match="404"):
        mixed_batch.main(["http://one", "http://two", "--adapters", "x", "--rounds", "1"])
