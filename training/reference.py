"""The reference: what transformers and peft answer, greedily, for given token ids. The server is judged by
it.

It runs in a process of its own, since a serving host must not hold a second copy of the base:

    answers = ask(Request(base_folder, [Job(adapter_folder, prompts), Job(None, prompts)]))
    python -m training.reference REQUEST.json OUT.json

`judge` (from `agreement`) decides whether a server's tokens and log-probabilities equal an answer.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from training.agreement import Expected, Verdict, judge
from training.errors import ReferenceFailed

__all__ = ["Expected", "Job", "Request", "Verdict", "ask", "compute", "judge"]


@dataclass(frozen=True, slots=True)
class Job:
    """Prompts for the base with one adapter, or (None) for the base alone."""

    adapter: Path | None
    prompts: Sequence[Sequence[int]]

    def to_json(self) -> dict[str, Any]:
        return {
            "adapter": None if self.adapter is None else str(self.adapter),
            "prompts": [list(prompt) for prompt in self.prompts],
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Job:
        adapter = record["adapter"]
        return cls(None if adapter is None else Path(adapter), record["prompts"])


@dataclass(frozen=True, slots=True)
class Request:
    """`end`: tokens that end an answer; by default those of the base's generation config."""

    base: Path
    jobs: Sequence[Job]
    max_tokens: int = 32
    end: Sequence[int] | None = None
    dtype: str = "float32"
    batch_size: int = 8
    threads: int | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "base": str(self.base),
            "jobs": [job.to_json() for job in self.jobs],
            "max_tokens": self.max_tokens,
            "end": None if self.end is None else list(self.end),
            "dtype": self.dtype,
            "batch_size": self.batch_size,
            "threads": self.threads,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Request:
        fields = {**record, "base": Path(record["base"]), "jobs": [Job.from_json(j) for j in record["jobs"]]}
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class Answers:
    """For each job, for each of its prompts in order: the expected answer. `end` is what ended them."""

    jobs: list[list[Expected]] = field(default_factory=list)
    end: list[int] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {"jobs": [[asdict(answer) for answer in job] for job in self.jobs], "end": self.end}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Answers:
        jobs = [[Expected(**answer) for answer in job] for job in record["jobs"]]
        return cls(jobs, list(record["end"]))


def ask(request: Request, *, python: str = sys.executable, timeout: float = 600) -> Answers:
    """Compute in another process, which frees its memory by ending."""
    with tempfile.TemporaryDirectory(prefix="onebase-reference-") as folder:
        question, answer = Path(folder, "request.json"), Path(folder, "answers.json")
        question.write_text(json.dumps(request.to_json()), encoding="utf-8")
        command = [python, "-m", "training.reference", str(question), str(answer)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
        except subprocess.TimeoutExpired as error:
            raise ReferenceFailed(f"the reference took longer than {timeout:.0f} s; ask for less") from error
        if done.returncode != 0 or not answer.is_file():
            tail = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
            raise ReferenceFailed(f"the reference process failed: {tail[0]}")
        return Answers.from_json(json.loads(answer.read_text(encoding="utf-8")))


def compute(request: Request) -> Answers:
    """In this process: one copy of the base, each adapter put on and taken off again."""
    import peft
    import torch

    from training.generate import greedy
    from training.model import end_tokens, open_model, open_tokenizer, quiet_transformers

    if request.threads:
        torch.set_num_threads(request.threads)
    model = open_model(request.base, getattr(torch, request.dtype))
    tokenizer = open_tokenizer(request.base)
    end = sorted(end_tokens(tokenizer, model)) if request.end is None else list(request.end)
    answers = Answers(end=end)
    for job in request.jobs:
        with quiet_transformers():
            adapted = (
                model if job.adapter is None else peft.PeftModel.from_pretrained(model, str(job.adapter))
            )
        generated = greedy(
            adapted,
            job.prompts,
            max_new_tokens=request.max_tokens,
            end=end,
            batch_size=request.batch_size,
            pad=tokenizer.pad_token_id or 0,
        )
        answers.jobs.append([Expected(g.tokens, g.logprobs, g.gaps) for g in generated])
        if job.adapter is not None:
            model = adapted.unload()
    return answers


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 2:
        print("usage: python -m training.reference REQUEST.json OUT.json", file=sys.stderr)
        return 2
    request = Request.from_json(json.loads(Path(arguments[0]).read_text(encoding="utf-8")))
    Path(arguments[1]).write_text(json.dumps(compute(request).to_json()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
