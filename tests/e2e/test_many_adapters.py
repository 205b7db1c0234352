"""Many adapters on one engine: each answer is that of its own adapter, whatever shares the batch."""

from __future__ import annotations

import asyncio
import random

import httpx
import pytest

from adapters.base import BaseModel
from adapters.registry import Registry
from tests.e2e.asking import Asked, ask, client, verdict
from tests.e2e.conftest import NAMES, PROMPTS, Reference, Server
from tests.e2e.made_adapters import make_adapter


def test_the_adapters_differ(reference: Reference) -> None:
    """Else the tests below could not tell one from another."""
    answers = {name: [tuple(one.tokens) for one in found] for name, found in reference.answers.items()}
    assert len({tuple(found) for found in answers.values()}) == len(answers) == 9


async def test_a_mixed_batch_answers_as_each_alone(roomy: Server, reference: Reference) -> None:
    names = ["base", *NAMES[:3]]
    models = {"base": "smollm2-135m"} | {name: name for name in NAMES}
    async with client(roomy.url) as sdk:
        jobs = [(name, number) for number in range(len(PROMPTS)) for name in names]

        async def one(name: str, number: int) -> Asked:
            return await ask(sdk, models[name], reference.prompts[number])

        alone = [await one(*job) for job in jobs]
        most = 0.0
        together = [asyncio.create_task(one(*job)) for job in jobs]
        while not all(task.done() for task in together):
            most = max(most, await asyncio.to_thread(roomy.metric, "vllm:num_requests_running"))
            await asyncio.sleep(0.05)
        mixed = [await task for task in together]
    assert most >= len(names)  # they did share the engine's batch
    for (name, number), single, batched in zip(jobs, alone, mixed, strict=True):
        assert single.model == batched.model == (f"{name}@1" if name != "base" else "smollm2-135m")
        for asked in (single, batched):
            found = verdict(reference, name, number, asked)
            assert found.equal, f"{name}, prompt {number}: {found.mismatch}"
            assert found.compared >= 1


async def test_every_adapter_equals_transformers_and_peft(roomy: Server, reference: Reference) -> None:
    async with client(roomy.url) as sdk:
        jobs = [(name, number) for name in NAMES for number in range(len(PROMPTS))]
        answers = await asyncio.gather(*(ask(sdk, name, reference.prompts[n]) for name, n in jobs))
    compared = 0
    for (name, number), asked in zip(jobs, answers, strict=True):
        found = verdict(reference, name, number, asked)
        assert found.equal, f"{name}, prompt {number}: {found.mismatch}"
        compared += found.compared
    assert compared >= len(jobs) * 6  # not cut short by near ties


async def test_eight_adapters_over_two_slots_and_four_places(tight: Server, reference: Reference) -> None:
    """200 interleaved requests: no failure, each its own adapter, and the counters show the swaps."""
    order = random.Random(7)
    jobs = [(name, number % len(PROMPTS)) for number in range(25) for name in NAMES]
    order.shuffle(jobs)
    gate = asyncio.Semaphore(24)
    async with client(tight.url) as sdk:

        async def one(name: str, number: int) -> Asked:
            async with gate:
                return await ask(sdk, name, reference.prompts[number], tokens=4)

        answers = await asyncio.gather(*(one(*job) for job in jobs))
    for (name, number), asked in zip(jobs, answers, strict=True):
        assert asked.model == f"{name}@1"
        found = verdict(reference, name, number, asked)
        assert found.equal, f"{name}, prompt {number}: {found.mismatch}"
    loads, evictions = (
        tight.metric("onebase_adapter_loads_total"),
        tight.metric("onebase_adapter_evictions_total"),
    )
    assert loads >= 8
    assert evictions == loads - tight.metric("onebase_adapters_resident") >= 4
    assert tight.metric("onebase_adapters_resident") <= 4
    assert tight.get("/readyz").status_code == 200


async def test_publishing_while_requests_run_fails_none(
    roomy: Server,
    reference: Reference,
    registry: Registry,
    base: BaseModel,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("second") / "made-0"
    make_adapter(folder, base.modules, seed=100, rank=8)
    stop = asyncio.Event()
    answers: asyncio.Queue[str] = asyncio.Queue()

    async def eight_of(model: str) -> None:
        for _ in range(8):
            while await answers.get() != model:
                pass

    async with client(roomy.url) as sdk:

        async def traffic() -> None:
            while not stop.is_set():
                answers.put_nowait((await ask(sdk, "made-0", reference.prompts[0], tokens=4)).model)

        crowd = [asyncio.create_task(traffic()) for _ in range(4)]
        await eight_of("made-0@1")
        manifest = await asyncio.to_thread(registry.publish, "made-0", folder, base, by="e2e")
        published = asyncio.get_running_loop().time()
        assert manifest.version == 2
        first = await ask(sdk, "made-0", reference.prompts[0], tokens=1)
        assert first.model == "made-0@2"  # callable at once
        assert asyncio.get_running_loop().time() - published < 10
        await eight_of("made-0@2")
        stop.set()
        await asyncio.gather(*crowd)  # a failed request would be raised here
        pinned = await ask(sdk, "made-0@1", reference.prompts[0])
        assert verdict(reference, "made-0", 0, pinned).equal  # version 1 has not changed
        registry.set_alias("made-0", "production", 1, by="e2e")
        assert (await ask(sdk, "made-0", reference.prompts[0], tokens=1)).model == "made-0@1"
        registry.set_alias("made-0", "canary", 2, by="e2e")
        assert (await ask(sdk, "made-0:canary", reference.prompts[0], tokens=1)).model == "made-0@2"


async def test_adapter_id_beside_the_bases_name(roomy: Server, reference: Reference) -> None:
    async with client(roomy.url) as sdk:
        asked = await ask(sdk, "smollm2-135m", reference.prompts[1], adapter_id="made-3")
    assert asked.model == "made-3@1"
    assert verdict(reference, "made-3", 1, asked).equal


def test_models_list_base_and_every_adapter(roomy: Server) -> None:
    cards = {card["id"]: card for card in roomy.get("/v1/models").json()["data"]}
    assert set(NAMES) < set(cards)
    assert cards["smollm2-135m"]["parent"] is None
    assert cards["made-7"]["parent"] == "smollm2-135m"
    assert cards["made-7"]["onebase"]["versions"][0]["id"] == "made-7@1"
    assert roomy.get("/v1/models/made-7@1").json()["root"] == "made-7@1"


def test_an_unknown_model_names_the_nearest(roomy: Server) -> None:
    answer = httpx.post(f"{roomy.url}/v1/completions", json={"model": "made-77", "prompt": "x"}, timeout=30)
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert error["code"] == "model_not_found"
    assert "`made-7`" in error["message"]
    assert answer.headers["x-request-id"] == error["request_id"]
