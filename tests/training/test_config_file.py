from __future__ import annotations

from pathlib import Path

import pytest

from training.config_file import load_config
from training.errors import ConfigError

MINIMAL = """
model: smollm2-135m
data:
  train: {file: train.jsonl}
"""


@pytest.fixture
def yaml(tmp_path: Path) -> Path:
    path = tmp_path / "home.yaml"
    path.write_text(MINIMAL)
    return path


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_defaults(yaml: Path) -> None:
    config = load_config(yaml)
    assert config.name == "home"
    assert config.method == "full"
    assert config.learning_rate == 1e-5
    assert config.folder == yaml.parent


def test_lora_section_is_the_method(yaml: Path) -> None:
    yaml.write_text(MINIMAL + "lora_config: {r: 8, lora_dropout: 0.05, target_modules: [q_proj]}\n")
    config = load_config(yaml)
    assert config.method == "lora"
    assert config.learning_rate == 1e-4
    assert load_config(yaml, ["lora_config=null"]).method == "full"


def test_empty_lora_section_is_not_taken_for_full(yaml: Path) -> None:
    yaml.write_text(MINIMAL + "lora_config:\n")
    assert "lora_config is empty" in refused(yaml)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("optimiser.learning_rat=1", "unknown key `optimiser.learning_rat`; did you mean `optimiser.learning_rate`?"),
        ("optimizer.seed=1", "unknown key `optimizer`; did you mean `optimiser`?"),
        ("lora_config.alpha=1", "unknown key `lora_config.alpha`; did you mean `lora_config.lora_alpha`?"),
        ("data.train.fil=x", "unknown key `data.train.fil`; did you mean `data.train.file`?"),
        ("batch_size=4", "unknown key `batch_size`; `batch_size` belongs to `optimiser.batch_size`"),
        ("optimiser.zzzz=4", "unknown key `optimiser.zzzz`; known here: learning_rate"),
        ("optimiser.batch_size=lots", "`optimiser.batch_size` is 'lots': input should be a valid integer"),
        ("optimiser.batch_size=yes", "`optimiser.batch_size` is True: a number is expected"),
        ("optimiser.learning_rate=-1", "`optimiser.learning_rate` is -1"),
        ("optimiser.learning_rate=.inf", "`optimiser.learning_rate` is inf"),
        ("evaluation.metrics=[f1]", "`evaluation.metrics[0]` is 'f1'"),
        ("evaluation.early_stopping_patience=2", "set evaluation.every_steps"),
        ("evaluation.every_steps=2", "evaluation.every_steps needs held-out data"),
        ("evaluation.answer.pattern='('", "not a regular expression"),
        ("lora_config.target_modules=[]", "name at least one module"),
        ("data.train={dataset: openai/gsm8k}", "name the `split` of openai/gsm8k"),
        ("data.train={limit: 3}", "give a `dataset`"),
        ("lora_config.init_lora_weights=pissa", "`lora_config.init_lora_weights` is 'pissa'"),
        ("data.train=null", "`data.train` is missing"),
        ("data", "--set data: write it as path=value"),
        ("model.x=1", "'model' is 'smollm2-135m', it has no keys below it"),
        ("name={", "is not a YAML value"),
    ],
)  # fmt: skip
def test_bad_values_are_named_with_their_mend(yaml: Path, override: str, says: str) -> None:
    assert says in refused(yaml, override)


def test_what_cannot_be_served_is_not_published(yaml: Path) -> None:
    says = refused(yaml, "lora_config={use_dora: true}", "publish={name: x}")
    assert "an adapter with lora_config.use_dora cannot be served" in says
    assert load_config(yaml, ["lora_config={use_dora: true}"]).method == "lora"


def test_scientific_notation_without_a_point(yaml: Path) -> None:
    assert load_config(yaml, ["optimiser.learning_rate=1e-3"]).learning_rate == 1e-3


def test_overrides_make_sections(yaml: Path) -> None:
    config = load_config(yaml, ["publish.name=home", "optimiser.max_steps=3"])
    assert config.publish is not None
    assert config.publish.name == "home"
    assert config.optimiser.max_steps == 3


def test_broken_files(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    assert "no such file" in refused(path)
    path.write_text("model: [a\nname: b\n")
    assert f"{path}:2: not valid YAML" in refused(path)
    path.write_text("model: a\nmodel: b\n")
    assert "broken.yaml:2: not valid YAML: the key 'model' is there twice" in refused(path)
    path.write_text("- a\n")
    assert "a mapping with `model` and `data` is expected" in refused(path)
    path.write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in refused(path)
