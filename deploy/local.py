"""This machine's OneBase as a command sees it: the settings in force, the registry, the base model.

Every command reads the same settings as the server does (command line over `ONEBASE_*` over YAML over
defaults), so that what is published here is what a server started beside it serves. Heavy imports happen when
a thing is asked for.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from deploy import output

if TYPE_CHECKING:
    from adapters.base import BaseModel
    from adapters.registry import Registry
    from server.settings import Settings


def settings(home: Path | None = None, store: Path | None = None) -> Settings:
    """The settings in force, with the folders named on the command line."""
    from server.settings import parse_command_line

    flags = [*(["--home", str(home)] if home else []), *(["--store", str(store)] if store else [])]
    return parse_command_line(flags).settings


def registry(where: Settings) -> Registry:
    """The registry that those settings name."""
    from adapters.registry import Registry
    from adapters.store import LocalStore

    return Registry(LocalStore(where.store_path), cache=where.home / "cache")


def base(where: Settings, model: str | None = None, revision: str | None = None) -> BaseModel:
    """The base model by name, or the one the settings serve; fetched and converted at the first use."""
    from adapters.base import open_base

    if model is not None and model != where.model:
        return open_base(model, home=where.home, revision=revision, progress=output.progress())
    found = open_base(
        where.model, home=where.home, revision=revision, name=where.name, progress=output.progress()
    )
    return dataclasses.replace(found, aliases=tuple(dict.fromkeys((*found.aliases, *where.base_aliases))))
