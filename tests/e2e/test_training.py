"""Training on the real base, as a user starts it: it learns, it survives a kill, and its result merges exactly."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from adapters.base import BaseModel
from adapters.check import check_folder
from deploy.demo.tasks import TASKS, write_task
from training.merge import merge
from training.reference import Job, Request, compute, judge

STEPS = 8
KILLED_AFTER = 5  # behind the checkpoint of step 4, before that of step 8
YAML = f"""
model: smollm2-135m
name: dates
data:
  train: {{file: dates/train.jsonl}}
  eval: {{file: dates/eval.jsonl}}
lora_config: {{r: 8, lora_alpha: 16, lora_dropout: 0.05}}
optimiser: {{learning_rate: 2.0e-3, batch_size: 4, max_steps: {STEPS}, warmup: 1, checkpoint_every: 4}}
evaluation: {{metrics: [loss]}}
"""


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dates")
    write_task(TASKS["dates"], folder, train=64, held_out=8)
    (folder / "dates.yaml").write_text(YAML)
    return folder


def command(task: Path, out: Path, home: Path) -> Sequence[str]:
    arguments = [
        "train",
        str(task / "dates.yaml"),
        "--data",
        str(task),
        "--out",
        str(out),
        "--home",
        str(home),
    ]
    return [sys.executable, "-c", "from deploy.cli import main; main()", *arguments, "--json"]


@pytest.fixture(scope="module")
def trained(task: Path, base: BaseModel, shared_home: Path) -> Path:
    """The run that nobody interrupts."""
    subprocess.run(command(task, task / "whole", shared_home), check=True, timeout=300)
    return task / "whole"


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines]


def test_lora_learns(trained: Path, base: BaseModel) -> None:
    report: dict[str, Any] = json.loads((trained / "report.json").read_text())
    assert report["scores"]["after"]["loss"] < report["scores"]["before"]["loss"] * 0.75
    checked = check_folder(trained / "adapter", base)
    assert checked.base_verified == "verified"
    assert checked.rank == 8


def test_a_killed_run_goes_on_with_the_same_losses(
    trained: Path, task: Path, base: BaseModel, shared_home: Path
) -> None:
    torn = task / "torn"
    process = subprocess.Popen(command(task, torn, shared_home))
    deadline = time.monotonic() + 200
    while not (torn / "metrics.jsonl").is_file() or len(losses_so_far(torn)) < KILLED_AFTER:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [path.name for path in (torn / "checkpoints").glob("step-*")] == ["step-4"]
    subprocess.run(command(task, torn, shared_home), check=True, timeout=300)
    assert losses(torn) == pytest.approx(losses(trained), rel=1e-3)


def losses_so_far(run: Path) -> list[str]:
    return (run / "metrics.jsonl").read_text().splitlines()


def test_merged_equals_adapter_and_base(trained: Path, base: BaseModel, tmp_path: Path) -> None:
    from training.model import open_tokenizer

    merged = merge(base, trained / "adapter", tmp_path / "merged")
    tokenizer = open_tokenizer(merged)
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        for text in ("we met on the third of May nineteen ninety", "Why is the sky blue?")
    ]
    with_adapter = compute(Request(base.folder, [Job(trained / "adapter", prompts)], max_tokens=10))
    as_one = compute(Request(merged, [Job(None, prompts)], max_tokens=10))
    for expected, answer in zip(with_adapter.jobs[0], as_one.jobs[0], strict=True):
        verdict = judge(expected, answer.tokens, answer.logprobs, end=with_adapter.end)
        assert verdict.equal, verdict.mismatch
        assert verdict.compared > 0
