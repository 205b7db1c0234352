"""Reads a training YAML and applies `--set a.b=c`: every complaint is one line with the path, the value, the
mend.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from training.config import TrainConfig
from training.errors import ConfigError


def load_config(path: Path, overrides: Iterable[str] = ()) -> TrainConfig:
    """The checked config of a YAML file. Relative `file` names are taken from the YAML's folder or the data
    root.
    """
    values = _read(path)
    values.setdefault("name", path.stem)
    for override in overrides:
        _override(values, override)
    config = check_config(values, source=str(path))
    config._folder = path.resolve().parent
    return config


def check_config(values: Mapping[str, Any], *, source: str = "config") -> TrainConfig:
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)
        message = "; ".join(_complaint(detail) for detail in first)
        raise ConfigError(f"{source}: {message}", param=_path(first[0])) from None


class _NoDuplicates(yaml.SafeLoader):
    """PyYAML lets the later of two equal keys win in silence; a config must not."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is there twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give the path of a training YAML") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    try:
        values = yaml.load(text, Loader=_NoDuplicates)  # noqa: S506 (a SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {error.problem}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a mapping with `model` and `data` is expected, not {_shown(values)}")
    return values


def _override(values: dict[str, Any], text: str) -> None:
    path, equals, raw = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"--set {text}: write it as path=value, for example --set optimiser.max_steps=20")
    try:
        value = yaml.safe_load(raw)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"--set {text}: {raw!r} is not a YAML value; put it in quotes", param=path
        ) from error
    at = values
    for key in keys[:-1]:
        below = at.get(key)
        if below is None:
            below = at[key] = {}
        if not isinstance(below, dict):
            raise ConfigError(
                f"--set {text}: {key!r} is {_shown(below)}, it has no keys below it", param=path
            )
        at = below
    if value is None:
        at.pop(keys[-1], None)  # null takes a key out: `--set lora_config=null` trains every parameter
    else:
        at[keys[-1]] = value


def _complaint(detail: ErrorDetails) -> str:
    path = _path(detail)
    if detail["type"] == "extra_forbidden":
        return _unknown_key(detail["loc"])
    if detail["type"] == "missing":
        return f"`{path}` is missing"
    message = detail["msg"].removeprefix("Value error, ")
    where = f"`{path}`" if path else "the config"
    if isinstance(detail["input"], Mapping):
        return f"{where}: {message}"
    return f"{where} is {_shown(detail['input'])}: {message[:1].lower()}{message[1:]}"


def _unknown_key(loc: tuple[int | str, ...]) -> str:
    *above, key = (str(part) for part in loc)
    place = ".".join([*above, key])
    known = _keys_at(TrainConfig, above)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if near:
        return f"unknown key `{place}`; did you mean `{'.'.join([*above, near[0]])}`?"
    elsewhere = [path for path in _all_paths(TrainConfig) if path.rpartition(".")[2] == key]
    if elsewhere:
        return f"unknown key `{place}`; `{key}` belongs to `{elsewhere[0]}`"
    return f"unknown key `{place}`; known here: {', '.join(known)}"


def _keys_at(model: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        field = model.model_fields.get(part)
        below = _model_of(field.annotation) if field else None
        if below is None:
            return []
        model = below
    return list(model.model_fields)


def _all_paths(model: type[BaseModel], above: str = "") -> list[str]:
    paths = []
    for name, field in model.model_fields.items():
        paths.append(above + name)
        below = _model_of(field.annotation)
        if below:
            paths += _all_paths(below, f"{above}{name}.")
    return paths


def _model_of(annotation: Any) -> type[BaseModel] | None:
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)


def _path(detail: ErrorDetails) -> str:
    """The YAML path. pydantic adds the name of a union's branch, which is no key: it is left out."""
    parts: list[str] = []
    model: type[BaseModel] | None = TrainConfig
    for part in detail["loc"]:
        if isinstance(part, int):
            parts.append(f"[{part}]")
        elif model is None:
            continue
        elif part in model.model_fields or detail["type"] == "extra_forbidden":
            parts.append(f".{part}")
            field = model.model_fields.get(part)
            model = _model_of(field.annotation) if field else None
    return "".join(parts).lstrip(".")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
