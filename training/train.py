"""One training run from a config to a result folder: `run(config, base, output=..., data_root=...)`.

Everything that can be refused is refused before the first step, with nothing half-written. A run that was
killed goes on from its last checkpoint when it is started again, with the same losses as one that was never
interrupted.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import set_seed

from adapters.base import BaseModel
from training.callbacks import EarlyStopping, MetricsFile, Progress, StopOnSignal
from training.checkpoints import RunFolder, need_space, read_json, step_of, write_json
from training.config import TrainConfig
from training.data import Data, load_data
from training.errors import Interrupted
from training.evaluate import Answer, Evaluation, asked, evaluate
from training.model import (
    Hardware,
    attach,
    open_model,
    open_tokenizer,
    pick_hardware,
    quiet_transformers,
    trainable_parameters,
)
from training.result import TrainResult, lineage, read_result, write_adapter, write_model
from training.trainer import STOPPER_STATE, FineTuner, steps_in_all


@dataclass(slots=True)
class _Job:
    """What the stages of one run share."""

    config: TrainConfig
    base: BaseModel
    run: RunFolder
    hardware: Hardware
    tokenizer: Any
    model: Any
    data: Data
    progress: bool


def run(
    config: TrainConfig,
    base: BaseModel,
    *,
    output: Path,
    data_root: Path | None = None,
    resume: bool = True,
    progress: bool = True,
) -> TrainResult:
    """Train, evaluate before and after, write the result below `output`. Finished runs are returned as they
    are.
    """
    hardware = pick_hardware(config.dtype)
    tokenizer = open_tokenizer(base.folder)
    context = int(base.config.get("max_position_embeddings") or 2**31)
    data = load_data(config, tokenizer, data_root=data_root, base_name=base.name, context=context)
    folder = RunFolder(output)
    identity = _identity(config, base, data, hardware)
    finished = read_result(output) if resume and read_json(output / "run.json") == identity else None
    if finished:
        return finished
    set_seed(config.optimiser.seed)
    weights = hardware.weights if config.method == "lora" else torch.float32
    model = attach(open_model(base.folder, weights, hardware.device), config.lora_config, base)
    need_space(output, 4 * _weights_on_disk(model), "this run")
    folder.open(identity, resume=resume)
    job = _Job(config, base, folder, hardware, tokenizer, model, data, progress)
    started = time.monotonic()
    try:
        with quiet_transformers():
            return _stages(job, started)
    except KeyboardInterrupt:
        latest = folder.latest()
        step = step_of(latest) if latest else 0
        raise Interrupted(step, steps_in_all(config, len(data.train)), str(output)) from None


def _stages(job: _Job, started: float) -> TrainResult:
    before = _before(job)
    facts = _train(job)
    scores: dict[str, dict[str, float]] = {}
    if before:
        scores["before"] = before
    if job.data.held_out:
        after = _evaluate(job, "after")
        scores["after"] = after.scores
        write_json(job.run.path / "after.json", _evaluation_record(after))
    kind = job.config.method
    record = lineage(job.config, job.base, job.data.lineage, {**facts, "scores": scores})
    target = job.run.path / ("adapter" if kind == "lora" else "model")
    if kind == "lora":
        write_adapter(job.model, job.base, record, target)
    else:
        write_model(job.model, job.base, record, target)
    result = TrainResult(target, kind, scores, record, round(time.monotonic() - started, 1))
    write_json(job.run.report, result.to_json())
    job.run.clear_working_files()
    return result


def _before(job: _Job) -> dict[str, float]:
    """The base's own scores: once, also over a resume. A fresh LoRA changes nothing, so it need not be taken
    off.
    """
    if not job.config.evaluation.before or not job.data.held_out:
        return {}
    path = job.run.path / "before.json"
    known = read_json(path)
    if known is None:
        known = _evaluation_record(_evaluate(job, "before"))
        write_json(path, known)
    return dict(known["scores"])


def _train(job: _Job) -> dict[str, Any]:
    """Train to the end, or from the last checkpoint to the end; the model then has the weights to keep."""
    config, run = job.config, job.run
    settings = config.evaluation
    keeps_best = settings.early_stopping_patience is not None or settings.target_loss is not None
    stopper = EarlyStopping(settings) if keeps_best else None
    signals = StopOnSignal()
    bar = [Progress(config.name)] if job.progress else []
    trainer = FineTuner(
        job.model,
        config,
        run,
        job.hardware,
        job.data.train,
        job.data.held_out,
        job.tokenizer.pad_token_id,
        stopper,
        [MetricsFile(run), signals, *bar],
        space=3 * _weights_on_disk(job.model),
    )
    total = steps_in_all(config, len(job.data.train))
    done = _continue_from(job, trainer, stopper)
    started = time.monotonic()
    if done < total and not (stopper and stopper.stopped):
        latest = run.latest()
        with signals.listening():
            trainer.train(resume_from_checkpoint=str(latest) if latest else None)
        if signals.asked and trainer.state.global_step < total and not (stopper and stopper.stopped):
            raise Interrupted(trainer.state.global_step, total, str(run.path))
    best = stopper.best if stopper else None
    if best:
        trainer.load_weights(run.best)
    trainer.accelerator.unwrap_model(
        job.model, keep_fp32_wrapper=False
    )  # scores after as before: in full precision
    return {
        "steps": max(done, trainer.state.global_step),
        "kept_step": best.step if best else max(done, trainer.state.global_step),
        "stopped_early": bool(stopper and stopper.stopped),
        "trainable_parameters": trainable_parameters(job.model),
        "dtype": job.hardware.name,
        "device": job.hardware.device,
        "train_seconds": round(time.monotonic() - started, 1),
    }


def _continue_from(job: _Job, trainer: FineTuner, stopper: EarlyStopping | None) -> int:
    """The step of the last checkpoint, or 0. A run that was killed after its last step only needs its
    weights.
    """
    latest = job.run.latest()
    step = step_of(latest) if latest else 0
    job.run.forget_after(step)
    if latest is None:
        return 0
    record = read_json(latest / STOPPER_STATE)
    if stopper and record:
        stopper.restore(record)
    if step >= steps_in_all(job.config, len(job.data.train)):
        trainer.load_weights(latest)
    return step


def _evaluate(job: _Job, when: str) -> Evaluation:
    total = len(asked(job.data.held_out, job.config.evaluation))
    with tqdm(total=total, desc=f"scores {when}", unit="answer", disable=not job.progress) as bar:
        return evaluate(job.model, job.tokenizer, job.data.held_out, job.config.evaluation, bar.update)


def _evaluation_record(evaluation: Evaluation) -> dict[str, Any]:
    answers: list[Answer] = evaluation.answers
    return {"scores": evaluation.scores, "answers": [answer.record() for answer in answers]}


def _identity(config: TrainConfig, base: BaseModel, data: Data, hardware: Hardware) -> dict[str, Any]:
    """What makes two runs the same run: a resume under anything else would be a mixture."""
    return {
        "config": {key: value for key, value in config.effective().items() if key != "publish"},
        "data": data.lineage,
        "base": base.fingerprint.to_json(),
        "dtype": hardware.name,
    }


def _weights_on_disk(model: Any) -> int:
    """Bytes of the trained weights in float32. A checkpoint holds thrice that: weights and two moments."""
    return 4 * trainable_parameters(model)


__all__ = ["TrainResult", "run"]
