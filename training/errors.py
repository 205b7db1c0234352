"""The error tree of training. Every message names the field or file, the value, and what to do about it.

TrainingError
├── ConfigError             the YAML or a --set override
├── DataError               what was to be learned from
│   ├── DataNotFound        a file or a hub data set that cannot be opened
│   ├── MalformedData       a line that is not what it should be
│   ├── MissingField        a row without a field that the config asks for
│   ├── SampleTooLong       longer than the context, under `too_long: error`
│   └── EmptyData           nothing left to train on
├── ModelProblem            the base and the config do not fit together
│   └── NoChatTemplate
├── RunProblem              the run itself
│   ├── RunMismatch         the output folder holds something else
│   ├── NoDiskSpace
│   ├── LossNotFinite
│   └── Interrupted
├── MergeRefused
├── PublishRefused
└── ReferenceFailed
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row came from: `file:line` for JSON lines, `file train[3]` for a JSON document."""

    source: str
    line: int | None = None
    record: str | None = None

    def __str__(self) -> str:
        if self.line is not None:
            return f"{self.source}:{self.line}"
        return f"{self.source} {self.record}" if self.record else self.source


class TrainingError(Exception):
    """Root. `code` is stable for programs, `param` names the config field or None."""

    code = "training_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class ConfigError(TrainingError):
    code = "bad_config"


class DataError(TrainingError):
    """`place` is the file and line, where there is one."""

    code = "bad_data"

    def __init__(self, message: str, *, place: Place | None = None, param: str | None = None) -> None:
        super().__init__(f"{place}: {message}" if place else message, param=param)
        self.place = place


class DataNotFound(DataError):
    code = "data_not_found"


class MalformedData(DataError):
    code = "malformed_data"


class MissingField(DataError):
    code = "missing_field"

    def __init__(self, field: str, there: list[str], *, place: Place, param: str) -> None:
        has = ", ".join(repr(name) for name in there) or "no fields"
        super().__init__(
            f"the row has no field {field!r}, which {param} asks for; it has {has}", place=place, param=param
        )
        self.field = field


class SampleTooLong(DataError):
    code = "sample_too_long"

    def __init__(self, length: int, limit: int, *, place: Place) -> None:
        super().__init__(
            f"the sample has {length} tokens, the limit is {limit} (data.max_length, or the base's context); "
            "shorten it, raise data.max_length, or set data.too_long to 'drop' or 'truncate'",
            place=place,
            param="data.too_long",
        )
        self.length = length
        self.limit = limit


class EmptyData(DataError):
    code = "empty_data"


class ModelProblem(TrainingError):
    code = "model_problem"


class NoChatTemplate(ModelProblem):
    code = "no_chat_template"

    def __init__(self, base: str) -> None:
        super().__init__(
            f"data.format is 'chat', but the tokenizer of {base!r} has no chat template; use a base with one "
            "(an instruct model), or data.format: prompt-completion with data.wrap: plain",
            param="data.format",
        )


class RunProblem(TrainingError):
    code = "run_problem"


class RunMismatch(RunProblem):
    code = "run_mismatch"


class NoDiskSpace(RunProblem):
    code = "no_disk_space"

    def __init__(self, folder: str, needed: int, free: int, what: str) -> None:
        super().__init__(
            f"{what} needs about {_size(needed)} under {folder}, {_size(free)} are free; free some space or "
            "choose another --out"
        )
        self.needed = needed
        self.free = free


class LossNotFinite(RunProblem):
    code = "loss_not_finite"

    def __init__(self, what: str, step: int, kept: str | None) -> None:
        rest = f"the last good checkpoint is {kept}" if kept else "no checkpoint had been written yet"
        super().__init__(
            f"{what} was not finite at step {step}; training stopped, {rest}. "
            "Lower optimiser.learning_rate, add optimiser.warmup, or look at the data of that step",
            param="optimiser.learning_rate",
        )
        self.step = step


class Interrupted(RunProblem):
    code = "interrupted"

    def __init__(self, step: int, total: int, run_folder: str) -> None:
        super().__init__(
            f"stopped at step {step} of {total}; the checkpoint is in {run_folder}. "
            "Run the same command again to go on from there"
        )
        self.step = step


class MergeRefused(TrainingError):
    code = "merge_refused"


class PublishRefused(TrainingError):
    code = "publish_refused"


class ReferenceFailed(TrainingError):
    code = "reference_failed"


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
