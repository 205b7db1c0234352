"""transformers' Trainer with our sampler, loss, held-out loss and checkpoints. Knows no registry."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainingArguments

from adapters import disk
from training.batching import LengthBuckets, Samples, collate, supervised_tokens
from training.callbacks import EarlyStopping
from training.checkpoints import Best, RunFolder, checkpoint_folder, write_json
from training.config import TrainConfig
from training.data import Sample
from training.errors import LossNotFinite, NoDiskSpace
from training.evaluate import held_out_loss
from training.loss import summed_loss
from training.model import Hardware

_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
STOPPER_STATE = "early_stopping.json"


class FineTuner(Trainer):
    """The loss is the mean over the supervised tokens of a whole optimiser step, however accumulated."""

    def __init__(
        self,
        model: Any,
        config: TrainConfig,
        run: RunFolder,
        hardware: Hardware,
        train: Sequence[Sample],
        held_out: Sequence[Sample],
        pad: int,
        stopper: EarlyStopping | None,
        callbacks: list[Any],
        space: int,
    ) -> None:
        """`space` is what a checkpoint needs on disk, in bytes."""
        self.config = config
        self.run = run
        self.held_out = held_out
        self.pad = pad
        self.stopper = stopper
        self.space = space
        self.sampler = LengthBuckets(
            [len(sample.ids) for sample in train], config.optimiser.batch_size, config.optimiser.seed
        )
        super().__init__(
            model=model,
            args=_arguments(config, run, hardware, evaluates=bool(held_out)),
            train_dataset=Samples(train),
            eval_dataset=Samples(held_out) if held_out else None,
            data_collator=partial(collate, pad=pad),
            callbacks=[*callbacks, stopper] if stopper else callbacks,
        )
        self.remove_callback(PrinterCallback)
        self.loss_is_scaled_for_ga = True
        if stopper:
            stopper.save_best = self.save_best

    def _get_train_sampler(self, _dataset: Any = None) -> LengthBuckets:
        return self.sampler

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """Counts the supervised tokens of the whole step, over all its parts and devices."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        count = torch.tensor(sum(supervised_tokens(batch) for batch in batches), device=device)
        if self.args.world_size > 1:
            count = self.accelerator.gather(count).sum()
        return batches, count

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss = summed_loss(model, inputs) / num_items_in_batch
        if not torch.isfinite(loss):
            raise self._not_finite("the loss", self.state.global_step + 1)
        # Gradients of several devices are averaged, while our sum is over all of them.
        loss = loss * self.accelerator.num_processes
        return (loss, None) if return_outputs else loss

    def evaluate(
        self,
        eval_dataset: Any = None,  # noqa: ARG002 (the Trainer's signature)
        ignore_keys: Any = None,  # noqa: ARG002
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        loss = held_out_loss(self.model, self.held_out, self.config.evaluation, self.pad)
        metrics = {f"{metric_key_prefix}_loss": loss}
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Written in full, forced to the disk, then marked: see `checkpoints`."""
        step = int(self.state.global_step)
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and not bool(torch.isfinite(parameter).all()):
                raise self._not_finite(f"the weight {name}", step)
        folder = checkpoint_folder(self.run, step)
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            # The Trainer writes RUN/checkpoint-N and everything in it; we take it from there.
            super()._save_checkpoint(model, trial)
            written = Path(self.args.output_dir) / f"checkpoint-{step}"
            if self.stopper:
                write_json(written / STOPPER_STATE, self.stopper.record())
            written.rename(folder)
            self.run.mark(folder)
        except (OSError, RuntimeError) as error:
            shutil.rmtree(self.args.output_dir, ignore_errors=True)
            self._explain_full_disk(error)
            raise

    def save_best(self, best: Best) -> None:
        staging = self.run.best.with_name(".best")
        shutil.rmtree(staging, ignore_errors=True)
        try:
            self.save_model(str(staging), _internal_call=True)
            write_json(staging / "best.json", {"step": best.step, "loss": best.loss})
            disk.move_folder(staging, self.run.best)
        except (OSError, RuntimeError) as error:
            shutil.rmtree(staging, ignore_errors=True)
            self._explain_full_disk(error)
            raise

    def load_weights(self, folder: Path) -> None:
        self._load_from_checkpoint(str(folder))

    def _explain_full_disk(self, error: OSError | RuntimeError) -> None:
        """torch reports a full disk as a RuntimeError of its own wording: ask the disk itself."""
        free = shutil.disk_usage(self.run.path).free
        full = disk.is_full(error) if isinstance(error, OSError) else free < self.space
        if full:
            raise NoDiskSpace(str(self.run.path), self.space, free, "a checkpoint") from error

    def _not_finite(self, what: str, step: int) -> LossNotFinite:
        latest = self.run.latest()
        return LossNotFinite(what, step, str(latest) if latest else None)


def steps_in_all(config: TrainConfig, samples: int) -> int:
    """How many optimiser steps the config asks for, counted as the Trainer counts."""
    optimiser = config.optimiser
    if optimiser.max_steps:
        return optimiser.max_steps
    batches = -(-samples // optimiser.batch_size)
    in_epoch = max(1, -(-batches // optimiser.accumulation))
    return math.ceil(optimiser.epochs * in_epoch)


def _arguments(
    config: TrainConfig, run: RunFolder, hardware: Hardware, *, evaluates: bool
) -> TrainingArguments:
    optimiser = config.optimiser
    rhythm = config.evaluation.every_steps if evaluates else None
    return TrainingArguments(
        output_dir=str(run.checkpoints / ".writing"),
        per_device_train_batch_size=optimiser.batch_size,
        gradient_accumulation_steps=optimiser.accumulation,
        num_train_epochs=optimiser.epochs,
        max_steps=optimiser.max_steps or -1,
        learning_rate=config.learning_rate,
        lr_scheduler_type=_SCHEDULES[optimiser.schedule],
        warmup_steps=optimiser.warmup,
        weight_decay=optimiser.weight_decay,
        max_grad_norm=optimiser.max_grad_norm,
        optim="adamw_torch_fused",
        seed=optimiser.seed,
        data_seed=optimiser.seed,
        bf16=hardware.arithmetic is torch.bfloat16,
        use_cpu=hardware.device == "cpu",
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if rhythm else "no",
        eval_steps=rhythm,
        save_strategy="steps",
        save_steps=config.checkpoint_every,
        dataloader_pin_memory=hardware.device == "cuda",
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
    )
