"""What happens beside the steps: the metrics file, the progress bar, early stopping, a stop on Ctrl-C."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback

from training.checkpoints import Best, RunFolder
from training.config import EvaluationConfig

_KEPT = {
    "loss": "loss",
    "eval_loss": "held_out_loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
}


class MetricsFile(TrainerCallback):
    """One line for each step and each evaluation. Each line is complete before the next step begins."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run

    def on_log(self, _args: Any, state: Any, _control: Any, logs: Any = None, **_: Any) -> None:
        kept = {name: logs[key] for key, name in _KEPT.items() if key in logs}
        if not kept:
            return
        record = {"step": state.global_step, "epoch": round(state.epoch or 0.0, 4), **kept}
        with self.run.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


class Progress(TrainerCallback):
    """A bar with the rate, the remaining time, and the two losses."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.shown: dict[str, str] = {}
        self.bar: tqdm[Any] | None = None

    def on_train_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        self.bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc=f"training {self.name}",
            unit="step",
            dynamic_ncols=True,
        )

    def on_step_end(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:
        if self.bar is not None:
            self.bar.update(1)

    def on_log(self, _args: Any, _state: Any, _control: Any, logs: Any = None, **_: Any) -> None:
        for key, shown in (("loss", "loss"), ("eval_loss", "held-out")):
            if key in logs:
                self.shown[shown] = f"{logs[key]:.4f}"
        if self.bar is not None:
            self.bar.set_postfix(self.shown, refresh=False)

    def on_train_end(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:
        self.close()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


class EarlyStopping(TrainerCallback):
    """Keeps the weights with the best held-out loss, and ends training when it no longer gets better.

    `best` is what the run knew at its present step. After a resume the disk may hold a better one of steps
    that are run again; it is written over when they come.
    """

    def __init__(self, config: EvaluationConfig) -> None:
        self.config = config
        self.best: Best | None = None
        self.bad_evaluations = 0
        self.stopped = False
        self.save_best: Callable[[Best], None] | None = None

    def record(self) -> dict[str, Any]:
        best = None if self.best is None else {"step": self.best.step, "loss": self.best.loss}
        return {"bad_evaluations": self.bad_evaluations, "best": best, "stopped": self.stopped}

    def restore(self, record: dict[str, Any]) -> None:
        self.bad_evaluations = int(record["bad_evaluations"])
        self.stopped = bool(record["stopped"])
        best = record["best"]
        self.best = None if best is None else Best(int(best["step"]), float(best["loss"]))

    def on_evaluate(self, _args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:
        loss = float(metrics["eval_loss"])
        if self.best is None or loss < self.best.loss - self.config.early_stopping_delta:
            self.best = Best(int(state.global_step), loss)
            self.bad_evaluations = 0
            if self.save_best is not None:
                self.save_best(self.best)
        else:
            self.bad_evaluations += 1
        patience, target = self.config.early_stopping_patience, self.config.target_loss
        worn_out = patience is not None and self.bad_evaluations >= patience
        reached = target is not None and loss <= target
        if worn_out or reached:
            self.stopped = True
            control.should_training_stop = True


class StopOnSignal(TrainerCallback):
    """The first Ctrl-C (or a polite kill) ends the run after the present step, with a checkpoint; a second at
    once.
    """

    def __init__(self) -> None:
        self.asked = False

    def on_step_end(self, _args: Any, _state: Any, control: Any, **_: Any) -> None:
        if self.asked:
            control.should_save = True
            control.should_training_stop = True

    @contextmanager
    def listening(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield  # signals reach the main thread only
            return

        def ask(_number: int, _frame: FrameType | None) -> None:
            if self.asked:
                raise KeyboardInterrupt
            self.asked = True

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
