"""What training needs of a base and of a config, made on the fly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapters.base import BaseModel, open_base
from tests.training.tiny import ROWS, Configure, Write, make_model
from training.config import TrainConfig
from training.config_file import check_config


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    folder = tmp_path_factory.mktemp("base") / "tiny"
    make_model(folder)
    return open_base(str(folder), home=tmp_path_factory.mktemp("base-home"))


@pytest.fixture(scope="session")
def tokenizer(base: BaseModel) -> Any:
    from training.model import open_tokenizer

    return open_tokenizer(base.folder)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes rows as JSON lines into the test's folder."""

    def write_rows(name: str, rows: list[dict[str, Any]]) -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write_rows


@pytest.fixture
def configure(write: Write, tmp_path: Path) -> Configure:
    """A small config over ROWS; keyword arguments replace whole sections."""

    def make(**sections: Any) -> TrainConfig:
        write("train.jsonl", ROWS)
        write("eval.jsonl", ROWS[:4])
        values: dict[str, Any] = {
            "model": "tiny",
            "name": "test",
            "data": {
                "format": "prompt-completion",
                "train": {"file": str(tmp_path / "train.jsonl")},
                "eval": {"file": str(tmp_path / "eval.jsonl")},
            },
            "lora_config": {"r": 4, "lora_alpha": 8},
            "optimiser": {"learning_rate": 0.01, "batch_size": 4, "max_steps": 6},
            "evaluation": {"metrics": ["loss"]},
        }
        values.update(sections)
        return check_config({key: value for key, value in values.items() if value is not None})

    return make
