"""What training needs of a base and of a config, made on the fly."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from adapters.base import BaseModel, open_base
from tests.training.tiny import Configure, Write, make_config, make_model, write_rows


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """A tiny model gains nothing from more, and waits for them on a busy machine."""
    import torch

    torch.set_num_threads(1)


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
    return lambda name, rows: write_rows(tmp_path / name, rows)


@pytest.fixture
def configure(tmp_path: Path) -> Configure:
    """A small config over ROWS; keyword arguments replace whole sections."""
    return partial(make_config, tmp_path)
