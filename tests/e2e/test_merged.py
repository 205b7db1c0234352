"""An adapter merged into its base by the command, and the result served as a base of its own."""

from __future__ import annotations

import asyncio

from adapters.base import BaseModel
from tests.e2e.asking import ask, client, verdict
from tests.e2e.conftest import MERGED, ON_TOP, PROMPTS, Merged, Reference
from training.agreement import judge

# A merged weight is W + s B A, rounded once to float32; adapter and base are W x + s B (A x), rounded elsewhere.
# Over thirty layers the difference grows to some 1e-4 in a log-probability, and two logits as near to each other
# as that may change places: so five times the tolerance and margin of one and the same computation.
MERGING = 5e-3


def test_transformers_reads_it(
    merged_base: BaseModel, merged_reference: Reference, reference: Reference, base: BaseModel
) -> None:
    """The merged model alone says what base and adapter say, and not what the base says."""
    answers = merged_reference.answers["merged"]
    for expected, found in zip(reference.answers[MERGED], answers, strict=True):
        judged = judge(
            expected, found.tokens, found.logprobs, end=reference.end, margin=MERGING, tolerance=MERGING
        )
        assert judged.equal, judged.mismatch
        assert judged.compared >= 1
    assert [found.tokens for found in answers] != [one.tokens for one in reference.answers["base"]]
    assert merged_base.fingerprint.differences(base.fingerprint) == ["weights"]


async def test_served_it_answers_as_base_and_adapter(
    merged: Merged, merged_reference: Reference, reference: Reference
) -> None:
    async with client(merged.server.url) as sdk:
        answers = await asyncio.gather(*(ask(sdk, "merged", prompt) for prompt in reference.prompts))
    for number, asked in enumerate(answers):
        assert asked.model == "merged"
        as_adapter = verdict(reference, MERGED, number, asked, margin=MERGING, tolerance=MERGING)
        assert as_adapter.equal, f"prompt {number}: {as_adapter.mismatch}"
        # Against the merged model itself nothing was rounded elsewhere.
        as_itself = verdict(merged_reference, "merged", number, asked)
        assert as_itself.equal, f"prompt {number}: {as_itself.mismatch}"


async def test_adapters_on_top_of_it(merged: Merged, merged_reference: Reference) -> None:
    """It was started without one; these were published since."""
    async with client(merged.server.url) as sdk:
        jobs = [(name, number) for name in (*ON_TOP, "merged") for number in range(len(PROMPTS))]
        answers = await asyncio.gather(*(ask(sdk, name, merged_reference.prompts[n]) for name, n in jobs))
    for (name, number), asked in zip(jobs, answers, strict=True):
        found = verdict(merged_reference, name, number, asked)
        assert found.equal, f"{name}, prompt {number}: {found.mismatch}"


def test_it_is_listed_by_its_own_name(merged: Merged) -> None:
    cards = {card["id"]: card for card in merged.server.get("/v1/models").json()["data"]}
    assert set(cards) == {"merged", *ON_TOP}
    assert {cards[name]["parent"] for name in ON_TOP} == {"merged"}
