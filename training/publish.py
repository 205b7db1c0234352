"""Puts a finished run into the registry, with its scores and its lineage."""

from __future__ import annotations

from adapters.base import BaseModel
from adapters.manifest import Manifest
from adapters.registry import Registry
from training.config import TrainConfig
from training.errors import PublishRefused
from training.result import TrainResult


def publish(result: TrainResult, config: TrainConfig, registry: Registry, base: BaseModel) -> Manifest:
    """The version that the run became. Publishing the same weights again gives the same version."""
    wanted = config.publish
    if wanted is None:
        raise PublishRefused(
            "the config has no `publish` section; add `publish: {name: ...}` or --set publish.name=NAME",
            param="publish",
        )
    if result.kind != "lora":
        raise PublishRefused(
            f"{result.folder} is a full model, the registry keeps adapters; serve it with "
            f"`onebase serve {result.folder}`, or train with a lora_config",
            param="publish",
        )
    return registry.publish(
        wanted.name,
        result.folder,
        base,
        by=wanted.by,
        why=wanted.why,
        alias=wanted.alias,
        lineage=result.lineage,
        scores=result.scores,
    )
