"""`onebase train` and `onebase adapters merge`: what they hand on and print; the training is a fake."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from deploy import cli
from deploy.exits import Exit

SCORES = {"before": {"exact_match": 0.0, "loss": 2.5}, "after": {"exact_match": 0.75, "loss": 0.25}}


@dataclass
class Calls:
    """What the fake training was asked."""

    run: list[dict[str, Any]] = field(default_factory=list)
    merge: list[tuple[str, Path, Path]] = field(default_factory=list)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, adapter: Callable[..., Path]) -> Calls:
    """Puts a fake in the place of the training loop and of the merge; its result is a real adapter."""
    from training import config as training_config

    seen = Calls()

    @dataclass
    class Result:
        folder: Path
        kind: str
        scores: dict[str, dict[str, float]]
        lineage: dict[str, Any]
        seconds: float

    def run(config: training_config.TrainConfig, base: Any, **options: Any) -> Result:
        seen.run.append({"config": config, "base": base, **options})
        return Result(adapter(), config.method, SCORES, {"seed": 0}, 12.3)

    def publish(result: Result, config: training_config.TrainConfig, registry: Any, base: Any) -> Any:
        wanted = config.publish
        assert wanted is not None
        return registry.publish(wanted.name, result.folder, base, by=wanted.by, scores=result.scores)

    def merge(base: Any, folder: Path, output: Path) -> Path:
        seen.merge.append((base.name, folder, output))
        return output

    fakes: dict[str, dict[str, Any]] = {
        "train": {"run": run},
        "publish": {"publish": publish},
        "merge": {"merge": merge},
    }
    for name, members in fakes.items():
        fake = types.ModuleType(f"training.{name}")
        vars(fake).update(members)
        monkeypatch.setitem(sys.modules, f"training.{name}", fake)
    return seen


@pytest.fixture
def config(tmp_path: Path, tiny_base: Path) -> Path:
    file = tmp_path / "run.yaml"
    text = f"model: {tiny_base}\ndata:\n  train: {{file: train.jsonl}}\nlora_config: {{r: 2}}\n"
    file.write_text(text, encoding="utf-8")
    (tmp_path / "train.jsonl").write_text('{"prompt": "2 + 2 =", "completion": "4"}\n', encoding="utf-8")
    return file


def test_a_run_gets_its_folder_its_base_and_its_changes(
    config: Path, calls: Calls, home: Path, capsys: pytest.CaptureFixture[str], tiny_base: Path
) -> None:
    assert cli.run(["train", str(config), "--set", "optimiser.epochs=2", "--data", str(config.parent)]) == 0
    (call,) = calls.run
    assert call["config"].optimiser.epochs == 2
    assert call["base"].folder == tiny_base
    assert call["output"] == home / "runs" / "run"
    assert (call["data_root"], call["resume"], call["progress"]) == (config.parent, True, True)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["held-out", "score", "before", "after"]
    assert ["exact_match", "0", "0.75"] in lines
    assert not any("published" in line for line in lines)


def test_out_and_no_resume(config: Path, calls: Calls, tmp_path: Path) -> None:
    assert cli.run(["train", str(config), "--out", str(tmp_path / "here"), "--no-resume"]) == 0
    assert calls.run[0]["output"] == tmp_path / "here"
    assert calls.run[0]["resume"] is False


def test_the_result_is_published_when_the_config_says_so(
    config: Path, calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", str(config), "--set", "publish.name=support", "--set", "publish.by=ann", "--json"]
    assert cli.run(arguments) == 0
    assert json.loads(capsys.readouterr().out)["published"] == "support@1"
    assert calls.run[0]["progress"] is False
    assert cli.run(["adapters", "show", "support", "--json"]) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert (manifest["by"], manifest["scores"]) == ("ann", SCORES)


def test_no_publish_wins_over_the_config(
    config: Path, calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["train", str(config), "--set", "publish.name=support", "--no-publish"]) == 0
    assert "published" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--publish"], Exit.REFUSED, "--set publish.name=run"),
        (["--set", "publish.name=no name"], Exit.USAGE, "no name"),
        (["--set", "publish.name=a", "--set", "publish.alias=1"], Exit.USAGE, "alias"),
        (["--set", "optimizer.epochs=2"], Exit.USAGE, "optimi"),
    ],
)
def test_what_forbids_publishing_is_said_before_training(
    config: Path,
    calls: Calls,
    arguments: list[str],
    code: Exit,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.run(["train", str(config), *arguments]) == code
    assert said in capsys.readouterr().err
    assert calls.run == []


def test_a_full_model_is_not_published(
    config: Path, calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    text = config.read_text(encoding="utf-8").replace("lora_config: {r: 2}\n", "publish: {name: a}\n")
    config.write_text(text, encoding="utf-8")
    assert cli.run(["train", str(config)]) == Exit.REFUSED
    assert "--no-publish" in capsys.readouterr().err
    assert cli.run(["train", str(config), "--no-publish"]) == 0
    assert len(calls.run) == 1


def test_merge_takes_a_folder_or_a_reference(
    calls: Calls, adapter: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "merged"
    assert cli.run(["adapters", "merge", str(adapter()), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"merged model in {out}\n"
    assert calls.merge[-1] == ("tiny-llama", adapter(), out)
    cli.run(["adapters", "publish", "support", str(adapter())])
    assert cli.run(["adapters", "merge", "support@1", "--out", str(out)]) == 0
    assert (calls.merge[-1][1] / "adapter_model.safetensors").is_file()
    assert cli.run(["adapters", "merge", "suport", "--out", str(out)]) == Exit.NOT_FOUND


def test_a_broken_file_is_said_before_the_base_is_opened(
    config: Path, calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    config.with_name("train.jsonl").write_text('{"prompt": "a"\n', encoding="utf-8")
    assert cli.run(["train", str(config), "--set", "model=./nowhere"]) == Exit.DATA
    assert "train.jsonl:1" in capsys.readouterr().err
    assert calls.run == []
