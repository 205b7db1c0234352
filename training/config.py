"""The training YAML as one checked object. Knows the fields and their defaults; reads no file (`config_file`
does).

Field names of `lora_config` are peft's own, so that a configuration from peft or from Anyscale's guide can be
pasted. Whether the section is there is the method: with it LoRA, without it every parameter is trained.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    field_validator,
    model_validator,
)

Metric = Literal["loss", "exact_match", "accuracy", "json_valid", "json_match"]


def _number(value: object) -> object:
    """YAML reads `yes` and `on` as true, and true would pass for 1."""
    if isinstance(value, bool):
        raise ValueError("a number is expected, not true or false")
    return value


Count = Annotated[int, BeforeValidator(_number), Field(ge=1)]
Positive = Annotated[float, BeforeValidator(_number), Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, BeforeValidator(_number), Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, BeforeValidator(_number), Field(ge=0, lt=1)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(Strict):
    """One data set: on the Hugging Face hub, in a file, or both (then `--data FOLDER` picks the file)."""

    dataset: str | None = None
    revision: str | None = None
    subset: str | None = None
    split: str | None = None
    file: str | None = None
    records: str | None = Field(None, description="the key of a JSON document that holds the rows")
    skip: Annotated[int, BeforeValidator(_number), Field(ge=0)] = 0
    limit: Count | None = None

    @model_validator(mode="after")
    def _somewhere(self) -> Source:
        if not self.dataset and not self.file:
            raise ValueError("give a `dataset` (Hugging Face id), a local `file`, or both")
        if self.dataset and not self.split:
            raise ValueError(f"name the `split` of {self.dataset}, for example `split: train`")
        return self


class DataConfig(Strict):
    """What to learn from, and how a row becomes a prompt and an answer.

    Templates name fields in braces: `"{question}"`. For a JSON document with `records`, they may also name
    the document's own keys (`"{Definition}"`).
    """

    train: Source
    eval: Source | None = None
    eval_share: Share = Field(0.0, description="without `eval`: this share of the training rows is held out")
    format: Literal["chat", "prompt-completion"] = "chat"
    messages: str = "messages"
    prompt: str = "{prompt}"
    completion: str = "{completion}"
    system: str | None = None
    wrap: Literal["chat", "plain"] | None = Field(
        None,
        description="prompt-completion rows as chat turns; by default where the tokenizer has a template",
    )
    max_length: Count | None = None
    too_long: Literal["error", "drop", "truncate"] = "error"

    @model_validator(mode="after")
    def _one_held_out_set(self) -> DataConfig:
        if self.eval is not None and self.eval_share:
            raise ValueError("give either `eval` or `eval_share`, not both")
        return self


class LoraConfig(Strict):
    """peft's settings, by peft's names."""

    r: Count = 8
    lora_alpha: Positive = 16
    lora_dropout: Share = 0.0
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    use_rslora: bool = False
    use_dora: bool = False
    # Only what starts as the base itself and is saved as it is served (PiSSA and OLoRA shift the base's weights).
    init_lora_weights: Literal[True, "gaussian", "orthogonal"] = True
    bias: Literal["none"] = "none"
    task_type: Literal["CAUSAL_LM"] = "CAUSAL_LM"
    modules_to_save: list[str] = []
    rank_pattern: dict[str, Count] = {}
    alpha_pattern: dict[str, Positive] = {}
    layers_to_transform: list[int] | None = None

    @field_validator("target_modules")
    @classmethod
    def _some_target(cls, value: str | list[str]) -> str | list[str]:
        if not value:
            raise ValueError("name at least one module, or 'all-linear'")
        return value


class OptimiserConfig(Strict):
    learning_rate: Positive | None = Field(None, description="by default 1e-4 for LoRA, 1e-5 for full")
    epochs: Positive = 1.0
    max_steps: Count | None = None
    batch_size: Count = 8
    accumulation: Count = 1
    warmup: NotNegative = Field(0.0, description="steps; below 1 a share of all steps")
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: NotNegative = 0.0
    max_grad_norm: Positive = 1.0
    checkpoint_every: Count | None = Field(
        None, description="steps; by default evaluation.every_steps, or 50"
    )
    seed: Annotated[int, BeforeValidator(_number), Field(ge=0, lt=2**32)] = 0


class AnswerConfig(Strict):
    """How an answer is cut out of the text before `accuracy` compares it."""

    pattern: str | None = Field(None, description="a regular expression; its first group, or the whole match")
    which: Literal["first", "last"] = "last"
    remove: str | None = Field(
        None, description="a regular expression of what does not count, such as '[,$]'"
    )
    ignore_case: bool = True

    @field_validator("pattern", "remove")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"not a regular expression: {error}") from error
        return value


class EvaluationConfig(Strict):
    metrics: list[Metric] = ["loss", "exact_match"]
    limit: Count = Field(64, description="held-out samples that are answered, before and after")
    loss_limit: Count | None = Field(None, description="held-out samples for the loss; by default all")
    every_steps: Count | None = None
    early_stopping_patience: Count | None = Field(None, description="evaluations without a better loss")
    early_stopping_delta: NotNegative = 0.0
    target_loss: NotNegative | None = Field(None, description="good enough: stop as soon as it is reached")
    max_new_tokens: Count | None = Field(None, description="by default what the longest answer needs")
    batch_size: Count = 16
    before: bool = True
    answer: AnswerConfig = AnswerConfig()

    @model_validator(mode="after")
    def _early_stopping_has_a_rhythm(self) -> EvaluationConfig:
        if self.every_steps is None and (self.early_stopping_patience or self.target_loss is not None):
            raise ValueError("early stopping looks at the held-out loss: set evaluation.every_steps as well")
        return self


class PublishConfig(Strict):
    name: str
    alias: str | None = None
    by: str | None = None
    why: str = ""


class TrainConfig(Strict):
    model: str = Field(
        description="a folder, a Hugging Face id (org/name[@revision]), or the embedded default"
    )
    name: str
    data: DataConfig
    lora_config: LoraConfig | None = None
    optimiser: OptimiserConfig = OptimiserConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: what the hardware is fast at"
    )
    publish: PublishConfig | None = None

    _folder: Path | None = PrivateAttr(None)

    @model_validator(mode="before")
    @classmethod
    def _method_is_meant(cls, values: Any) -> Any:
        """An empty `lora_config:` reads as null; taking it for full-parameter training would be a dear
        surprise.
        """
        if isinstance(values, dict) and "lora_config" in values and values["lora_config"] is None:
            raise ValueError(
                "lora_config is empty: write `lora_config: {}` for LoRA with its defaults, "
                "or take the key out to train every parameter"
            )
        return values

    @model_validator(mode="after")
    def _held_out_needed(self) -> TrainConfig:
        if not self.holds_out and self.evaluation.every_steps is not None:
            raise ValueError("evaluation.every_steps needs held-out data: set data.eval or data.eval_share")
        return self

    @model_validator(mode="after")
    def _what_is_published_can_be_served(self) -> TrainConfig:
        lora = self.lora_config
        if self.publish is not None and lora is not None and (lora.use_dora or lora.modules_to_save):
            name = "use_dora" if lora.use_dora else "modules_to_save"
            raise ValueError(
                f"an adapter with lora_config.{name} cannot be served as it is: take out `publish` and merge the "
                "result into its base (`onebase adapters merge`), or take out the setting"
            )
        return self

    @property
    def method(self) -> Literal["lora", "full"]:
        return "full" if self.lora_config is None else "lora"

    @property
    def learning_rate(self) -> float:
        return self.optimiser.learning_rate or (1e-5 if self.lora_config is None else 1e-4)

    @property
    def holds_out(self) -> bool:
        return self.data.eval is not None or self.data.eval_share > 0

    @property
    def checkpoint_every(self) -> int:
        return self.optimiser.checkpoint_every or self.evaluation.every_steps or 50

    @property
    def folder(self) -> Path:
        """Where relative `file` names start when no data folder is given: the YAML's own folder."""
        return self._folder or Path()

    def effective(self) -> dict[str, Any]:
        """Everything that decides the result, defaults filled in: for records and for telling runs apart."""
        values = self.model_dump(mode="json", exclude_none=True)
        values["optimiser"]["learning_rate"] = self.learning_rate
        values["optimiser"]["checkpoint_every"] = self.checkpoint_every
        return values
