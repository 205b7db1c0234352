from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from adapters.base import BaseModel
from tests.training.test_merge import make_adapter
from training.errors import ReferenceFailed
from training.reference import Answers, Job, Request, Verdict, ask, compute, judge, main

PROMPTS = [[5, 6, 7], [8, 9]]


def test_adapters_are_put_on_and_taken_off(base: BaseModel, tmp_path: Path) -> None:
    adapter = make_adapter(base, tmp_path / "adapter")
    jobs = [Job(None, PROMPTS), Job(adapter, PROMPTS), Job(None, PROMPTS)]
    answers = compute(Request(base.folder, jobs, max_tokens=5, end=[]))
    before, adapted, after = answers.jobs
    for one, other in zip(before, after, strict=True):
        assert judge(one, other.tokens, other.logprobs, tolerance=1e-6) == Verdict(5)
    assert [answer.tokens for answer in adapted] != [answer.tokens for answer in before]
    assert all(len(answer.tokens) == len(answer.gaps) == 5 for answer in adapted)


def test_as_a_program(base: BaseModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    request = Request(base.folder, [Job(None, PROMPTS)], max_tokens=3)
    (tmp_path / "request.json").write_text(json.dumps(request.to_json()))
    assert main([str(tmp_path / "request.json"), str(tmp_path / "out.json")]) == 0
    answers = Answers.from_json(json.loads((tmp_path / "out.json").read_text()))
    assert answers == compute(request)
    assert answers.end == [257]
    assert main([]) == 2
    assert "usage" in capsys.readouterr().err


def fake_python(folder: Path, body: str) -> str:
    """Stands in for the interpreter: `ask` calls it with -m, module, request, out."""
    path = folder / "python"
    path.write_text(f"#!{sys.executable}\nimport sys\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_asking_another_process(base: BaseModel, tmp_path: Path) -> None:
    request = Request(base.folder, [Job(tmp_path / "adapter", PROMPTS)], end=[7])
    body = (
        "import json\nassert sys.argv[1:3] == ['-m', 'training.reference']\n"
        "assert json.load(open(sys.argv[3]))['jobs'][0]['prompts'] == [[5, 6, 7], [8, 9]]\n"
        "open(sys.argv[4], 'w').write('{\"jobs\": [], \"end\": [7]}')"
    )
    assert ask(request, python=fake_python(tmp_path, body)) == Answers([], [7])
    assert Request.from_json(request.to_json()) == request


def test_a_failed_process_is_reported(base: BaseModel, tmp_path: Path) -> None:
    request = Request(base.folder, [])
    with pytest.raises(ReferenceFailed, match="the reference process failed: out of memory"):
        ask(request, python=fake_python(tmp_path, "sys.exit('some noise\\nout of memory')"))
    with pytest.raises(ReferenceFailed, match="took longer than 0 s"):
        ask(request, python=fake_python(tmp_path, "import time; time.sleep(9)"), timeout=0.2)
