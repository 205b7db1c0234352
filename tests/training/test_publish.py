from __future__ import annotations

from pathlib import Path

import pytest

from adapters.base import BaseModel
from adapters.registry import Registry
from adapters.store import LocalStore
from tests.training.tiny import Configure
from training.errors import PublishRefused
from training.publish import publish
from training.result import TrainResult
from training.train import run


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(LocalStore(tmp_path / "registry"), cache=tmp_path / "cache")


def test_a_run_becomes_a_version_with_its_lineage(
    configure: Configure, base: BaseModel, registry: Registry, tmp_path: Path
) -> None:
    config = configure(publish={"name": "home", "alias": "production", "why": "first"})
    result = run(config, base, output=tmp_path / "run", progress=False)
    manifest = publish(result, config, registry, base)
    assert manifest.ref == "home@1"
    assert manifest.base.status == "verified"
    assert manifest.lineage["config"]["optimiser"]["learning_rate"] == 0.01
    assert manifest.lineage["data"]["train"]["sha256"].startswith("sha256:")
    assert manifest.scores["after"] == result.scores["after"]
    assert registry.resolve("home:production").ref == "home@1"
    assert publish(result, config, registry, base).ref == "home@1"


def test_what_cannot_be_published(
    configure: Configure, base: BaseModel, registry: Registry, tmp_path: Path
) -> None:
    result = TrainResult(tmp_path, "full", {}, {}, 0.0)
    with pytest.raises(PublishRefused, match="no `publish` section"):
        publish(result, configure(), registry, base)
    with pytest.raises(PublishRefused, match="onebase serve"):
        publish(result, configure(publish={"name": "x"}), registry, base)
