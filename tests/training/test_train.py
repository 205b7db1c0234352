"""Whole runs on the tiny model: what they leave behind, and what happens when they are interrupted."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.base import BaseModel
from adapters.check import check_folder
from tests.training.tiny import Configure, make_config
from training.config import TrainConfig
from training.errors import Interrupted, LossNotFinite, ModelProblem, NoDiskSpace, RunMismatch
from training.loss import summed_loss
from training.result import TrainResult
from training.train import run
from training.trainer import FineTuner

Go = Callable[..., TrainResult]


@pytest.fixture
def go(base: BaseModel, tmp_path: Path) -> Go:
    def start(config: TrainConfig, name: str = "run", **options: Any) -> TrainResult:
        return run(config, base, output=tmp_path / name, progress=False, **options)

    return start


def losses(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if "loss" in k or k == "step"} for line in lines]


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], None]) -> None:
    """Do something in the middle of a step, once."""
    train = FineTuner.training_step
    left = [step]

    def training_step(self: FineTuner, *args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            act()
        return train(self, *args, **kwargs)

    monkeypatch.setattr(FineTuner, "training_step", training_step)


def raise_interrupt() -> None:
    raise KeyboardInterrupt


def test_lora_leaves_a_clean_peft_folder(
    go: Go, configure: Configure, base: BaseModel, tmp_path: Path
) -> None:
    result = go(configure(evaluation={"metrics": ["loss", "exact_match"], "limit": 2}))
    assert result.kind == "lora"
    assert sorted(path.name for path in result.folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "onebase.json",
    ]
    settings = json.loads((result.folder / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == base.name
    assert settings["r"] == 4
    record = json.loads((result.folder / "onebase.json").read_text())
    assert record["base_fingerprint"] == base.fingerprint.to_json()
    checked = check_folder(result.folder, base)
    assert checked.base_verified == "verified"
    for path in result.folder.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes()
        assert str(base.folder).encode() not in path.read_bytes()


def test_training_learns_and_says_so(go: Go, configure: Configure, tmp_path: Path) -> None:
    quick = {"learning_rate": 0.01, "batch_size": 4, "max_steps": 12}
    result = go(configure(optimiser=quick, lora_config=None))
    assert result.scores["after"]["loss"] < result.scores["before"]["loss"] - 1
    assert [line["step"] for line in losses(tmp_path / "run")] == list(range(1, 13))
    assert result.lineage["steps"] == 12
    assert result.lineage["seed"] == 0
    assert result.lineage["data"]["train"]["rows"] == 12
    assert set(result.lineage["versions"]) >= {"python", "torch", "transformers", "peft"}
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "after.json",
        "before.json",
        "metrics.jsonl",
        "model",
        "report.json",
        "run.json",
    ]


def test_full_parameters_without_the_section(go: Go, configure: Configure, base: BaseModel) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result = go(configure(lora_config=None))
    assert result.kind == "full"
    model = AutoModelForCausalLM.from_pretrained(result.folder)
    tokenizer = AutoTokenizer.from_pretrained(result.folder)
    assert tokenizer.chat_template
    before = AutoModelForCausalLM.from_pretrained(base.folder)
    assert not torch.equal(
        model.model.layers[0].mlp.up_proj.weight, before.model.layers[0].mlp.up_proj.weight
    )
    assert result.lineage["trainable_parameters"] == sum(p.numel() for p in before.parameters())
    assert result.lineage["method"] == "full"


def test_bfloat16_arithmetic_learns_as_well(go: Go, configure: Configure) -> None:
    result = go(configure(dtype="bfloat16", lora_config=None))
    assert result.lineage["dtype"] == "bfloat16"
    assert result.scores["after"]["loss"] < result.scores["before"]["loss"]


def test_the_same_seed_gives_the_same_weights(go: Go, configure: Configure) -> None:
    first, second = go(configure(), "one"), go(configure(), "two")
    name = "adapter_model.safetensors"
    assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes()
    assert (first.folder / "adapter_config.json").read_bytes() == (
        second.folder / "adapter_config.json"
    ).read_bytes()


def test_a_finished_run_is_returned_as_it_is(
    go: Go, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = go(configure())
    monkeypatch.setattr(FineTuner, "train", None)
    assert go(configure(publish={"name": "x"})) == first


LONGER: dict[str, Any] = {
    "optimiser": {"learning_rate": 0.01, "batch_size": 2, "max_steps": 10, "checkpoint_every": 3},
    "lora_config": {"r": 4, "lora_dropout": 0.2},
    "evaluation": {"metrics": ["loss"], "every_steps": 2, "early_stopping_patience": 9},
}


@pytest.fixture(scope="module")
def whole(base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """The run of LONGER that nobody interrupts; its folder lies in the run's."""
    folder = tmp_path_factory.mktemp("whole")
    return run(make_config(folder, **LONGER), base, output=folder / "run", progress=False)


def test_resume_gives_the_losses_of_an_uninterrupted_run(
    go: Go,
    configure: Configure,
    whole: TrainResult,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 8, raise_interrupt)  # behind the checkpoint of step 6, in the middle of an epoch
        with pytest.raises(Interrupted, match="stopped at step 6 of 10"):
            go(configure(**LONGER), "torn")
    resumed = go(configure(**LONGER), "torn")
    assert losses(tmp_path / "torn") == losses(whole.folder.parent)
    name = "adapter_model.safetensors"
    assert (resumed.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def test_a_polite_stop_saves_at_once(
    go: Go,
    configure: Configure,
    whole: TrainResult,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 5, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(Interrupted, match=r"stopped at step 5 of 10.*Run the same command again"):
            go(configure(**LONGER), "torn")
    assert (tmp_path / "torn" / "checkpoints" / "step-5" / "complete").is_file()
    go(configure(**LONGER), "torn")
    assert losses(tmp_path / "torn") == losses(whole.folder.parent)


def test_a_half_written_checkpoint_does_not_count(
    go: Go,
    configure: Configure,
    whole: TrainResult,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 5, raise_interrupt)
        with pytest.raises(Interrupted):
            go(configure(**LONGER), "torn")
    checkpoints = tmp_path / "torn" / "checkpoints"
    shutil.copytree(checkpoints / "step-3", checkpoints / "step-6")
    (checkpoints / "step-6" / "complete").unlink()
    (checkpoints / "step-6" / "adapter_model.safetensors").write_bytes(b"half")
    with (tmp_path / "torn" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    go(configure(**LONGER), "torn")
    assert losses(tmp_path / "torn") == losses(whole.folder.parent)


def test_a_run_killed_after_its_last_step_trains_no_further(
    go: Go,
    configure: Configure,
    whole: TrainResult,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import training.train as module

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_adapter", lambda *_: raise_interrupt())
        with pytest.raises(Interrupted, match="stopped at step 10 of 10"):
            go(configure(**LONGER), "torn")
        patch.undo()
    resumed = go(configure(**LONGER), "torn")
    assert losses(tmp_path / "torn") == losses(whole.folder.parent)
    assert resumed.lineage["steps"] == 10
    name = "adapter_model.safetensors"
    assert (resumed.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def test_epochs_and_accumulation(go: Go, configure: Configure) -> None:
    result = go(configure(optimiser={"batch_size": 2, "accumulation": 2, "epochs": 1.5}))
    assert result.lineage["steps"] == 5  # 12 rows: 6 batches, 3 steps an epoch


def test_accumulation_equals_a_larger_batch(go: Go, configure: Configure, tmp_path: Path) -> None:
    """The rows of one step are the same set, so the loss over its tokens has to be the same number."""
    small = {"optimiser": {"batch_size": 12, "max_steps": 1}}
    parts = {"optimiser": {"batch_size": 3, "accumulation": 4, "max_steps": 1}}
    go(configure(**small), "small")
    go(configure(**parts), "parts")
    one, other = losses(tmp_path / "small")[0]["loss"], losses(tmp_path / "parts")[0]["loss"]
    assert one == pytest.approx(other, rel=1e-5)


def test_early_stopping_keeps_the_best_weights(go: Go, configure: Configure, tmp_path: Path) -> None:
    hard_to_please = {"early_stopping_patience": 2, "early_stopping_delta": 9.0}
    result = go(configure(evaluation={"metrics": ["loss"], "every_steps": 1, **hard_to_please}))
    assert result.lineage["stopped_early"] is True
    assert (result.lineage["kept_step"], result.lineage["steps"]) == (1, 3)
    held_out = [line["held_out_loss"] for line in losses(tmp_path / "run") if "held_out_loss" in line]
    assert result.scores["after"]["loss"] == pytest.approx(held_out[0], rel=1e-6)
    assert held_out[0] != pytest.approx(held_out[2], rel=1e-6)


def test_training_ends_when_it_is_good_enough(go: Go, configure: Configure) -> None:
    settings = {"metrics": ["loss"], "every_steps": 1, "target_loss": 100.0}
    assert go(configure(evaluation=settings)).lineage["steps"] == 1


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(
    go: Go, configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import training.trainer as module

    right, left = summed_loss, [5]

    def summed(*args: Any) -> torch.Tensor:
        left[0] -= 1
        return right(*args) * (float("nan") if left[0] == 0 else 1.0)

    monkeypatch.setattr(module, "summed_loss", summed)
    with pytest.raises(LossNotFinite, match=r"the loss was not finite at step 5.*step-3.*learning_rate"):
        go(configure(**LONGER))
    assert (tmp_path / "run" / "checkpoints" / "step-3" / "complete").is_file()
    assert not (tmp_path / "run" / "adapter").exists()


def test_weights_that_are_not_finite_are_never_saved(
    go: Go, configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = torch.optim.AdamW.step

    def spoil(self: Any, *args: Any, **kwargs: Any) -> Any:
        done = step(self, *args, **kwargs)
        self.param_groups[0]["params"][0].data.fill_(float("inf"))
        return done

    monkeypatch.setattr(torch.optim.AdamW, "step", spoil)
    with pytest.raises(LossNotFinite, match="no checkpoint had been written yet"):
        go(configure(optimiser={"batch_size": 4, "max_steps": 1}))
    assert not list((tmp_path / "run" / "checkpoints").glob("step-*"))


def test_another_run_is_not_overwritten(go: Go, configure: Configure, tmp_path: Path) -> None:
    go(configure())
    other = configure(optimiser={"learning_rate": 0.5, "batch_size": 4, "max_steps": 6})
    with pytest.raises(
        RunMismatch, match=r"config\.optimiser\.learning_rate was 0\.01, is 0\.5.*--no-resume"
    ):
        go(other)
    assert go(other, resume=False).lineage["config"]["optimiser"]["learning_rate"] == 0.5
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(RunMismatch, match="not empty and not a training run"):
        go(configure(), "mine", resume=False)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_a_full_disk_is_noticed_before_the_start(
    go: Go, configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(NoDiskSpace, match="this run needs about"):
        go(configure())
    assert not (tmp_path / "run").exists()


def test_a_disk_that_fills_up_leaves_the_checkpoint_before(
    go: Go, configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, left = torch.save, [7]

    def full(*args: Any, **kwargs: Any) -> None:
        left[0] -= 1
        if left[0] <= 0:
            usage = shutil.disk_usage(tmp_path)
            monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0))
            raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")
        save(*args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(NoDiskSpace, match="a checkpoint needs about"):
        go(configure(**LONGER))
    checkpoints = tmp_path / "run" / "checkpoints"
    assert [path.name for path in checkpoints.glob("step-*")] == ["step-3"]


def test_a_target_that_the_base_lacks(go: Go, configure: Configure, tmp_path: Path) -> None:
    config = configure(lora_config={"target_modules": ["q_proj", "k_porj"]})
    with pytest.raises(ModelProblem, match=r"target_modules\[1\] is 'k_porj'.*did you mean 'k_proj'"):
        go(config)
    assert not (tmp_path / "run").exists()


def test_progress_is_shown(configure: Configure, base: BaseModel, tmp_path: Path, capfd: Any) -> None:
    run(configure(), base, output=tmp_path / "run", progress=True)
    shown = capfd.readouterr().err
    assert "training test" in shown
    assert "6/6" in shown
    assert "s/step" in shown or "step/s" in shown
