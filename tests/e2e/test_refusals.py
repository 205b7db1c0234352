"""What cannot work is said at once: in seconds, before the engine starts, in one line that names the mend."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.base import BaseModel, open_base
from adapters.registry import Registry
from adapters.store import LocalStore
from deploy.exits import Exit
from tests.adapters.conftest import write_base
from tests.bad_adapters import good
from tests.e2e.commands import Refusal, refusal

pytestmark = pytest.mark.usefixtures("base")  # converted once, not by the command under test
TRAIN = """
model: smollm2-135m
name: refused
data:
  train: {file: rows.jsonl}
lora_config: {r: 8}
"""
ROW = '{"prompt": "2 + 2 =", "completion": "4"}\n'


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def serve(tmp_path: Path, *flags: str, **environment: str) -> Refusal:
    """A refusal of `onebase serve`; the engine was not begun."""
    flags = (*flags, "--store", str(tmp_path / "registry")) if "--store" not in flags else flags
    flags = (*flags, "--port", "0") if "--port" not in flags else flags
    found = refusal("serve", *flags, cwd=tmp_path, **environment)
    assert not [line for line in found.said_before if line.startswith("engine")]
    return found


def test_a_port_that_is_taken(taken: int, tmp_path: Path) -> None:
    found = serve(tmp_path, "--port", str(taken))
    assert found.code == Exit.START
    assert f"port {taken} " in found.line
    assert "--port" in found.line


@pytest.mark.parametrize("model", ["./models/none", "smollm-135"])
def test_a_base_that_is_not_there(model: str, tmp_path: Path) -> None:
    found = serve(tmp_path, model)
    assert found.code == Exit.BASE
    assert model.removeprefix("./") in found.line
    assert "smollm2-135m" in found.line  # what would have worked


def test_a_hub_id_without_a_network(tmp_path: Path) -> None:
    found = serve(tmp_path, "nobody/no-such-model", HF_HUB_OFFLINE="1")
    assert found.code == Exit.UNAVAILABLE
    assert "nobody/no-such-model" in found.line


def test_a_store_in_which_nothing_fits(base: BaseModel, tmp_path: Path) -> None:
    tiny = open_base(str(write_base(tmp_path / "tiny")), home=tmp_path / "home")
    store = tmp_path / "other"
    registry = Registry(LocalStore(store), cache=tmp_path / "cache")
    registry.publish("small", good(tiny).write(tmp_path / "small"), tiny)
    found = serve(tmp_path, base.name, "--store", str(store))
    assert found.code == Exit.START
    for word in (str(store), base.name, "tiny", "--allow-foreign-store"):
        assert word in found.line


def test_an_unknown_setting(tmp_path: Path) -> None:
    (tmp_path / "serve.yaml").write_text("max_lora: 4\n")
    found = serve(tmp_path, "--config", "serve.yaml")
    assert found.code == Exit.USAGE
    assert "max_lora" in found.line
    assert "serve.yaml" in found.line
    assert "`max_loras`" in found.line


def test_fewer_places_than_slots(tmp_path: Path) -> None:
    found = serve(tmp_path, "--max-loras", "8", "--max-cpu-loras", "4")
    assert found.code == Exit.START
    assert "max_cpu_loras = 4" in found.line
    assert "--max-cpu-loras" in found.line


def train(tmp_path: Path, rows: str, yaml: str = TRAIN) -> Refusal:
    (tmp_path / "rows.jsonl").write_text(rows)
    (tmp_path / "train.yaml").write_text(yaml)
    found = refusal("train", "train.yaml", "--out", "run", cwd=tmp_path)
    assert not (tmp_path / "run").exists()
    return found


def test_a_mistyped_training_key(tmp_path: Path) -> None:
    found = train(tmp_path, ROW, TRAIN + "optimiser: {learning_rat: 1.0e-3}\n")
    assert found.code == Exit.USAGE
    assert "train.yaml" in found.line
    assert "`optimiser.learning_rat`" in found.line
    assert "`optimiser.learning_rate`" in found.line


def test_training_on_nothing(tmp_path: Path) -> None:
    found = train(tmp_path, "")
    assert found.code == Exit.DATA
    assert "rows.jsonl" in found.line


def test_a_malformed_line(tmp_path: Path) -> None:
    found = train(tmp_path, ROW * 2 + '{"prompt": "2 + 2 =", \n' + ROW)
    assert found.code == Exit.DATA
    assert "rows.jsonl:3" in found.line
