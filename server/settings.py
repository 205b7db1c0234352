"""Every setting of the server, in one class: command line over `ONEBASE_*` over a YAML file over defaults.

Owns names, types, defaults and help of the settings, and where each effective value came from. Knows nothing of
what the values do. vLLM's own flags are not repeated here: whatever `parse_command_line` does not know is handed
on to vLLM unchanged.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from server.errors import SettingsError

ENV_PREFIX = "ONEBASE_"
_LISTS = {"api_keys", "base_aliases"}


class Settings(BaseModel):
    """The server's settings. Times in seconds, sizes in the unit that the name ends in."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), validate_default=True)

    model: str = Field(
        "smollm2-135m",
        description="base model: a folder, a Hugging Face id[@revision], or the embedded default",
    )
    name: str | None = Field(None, description="the name clients call the base by (default: from the model)")
    base_aliases: tuple[str, ...] = Field(
        (), description="further names that mean this base, in requests and in adapters"
    )
    home: Path = Field(Path("~/.onebase"), description="folder of registry, caches and training runs")
    store: Path | None = Field(None, description="folder of the adapter registry (default: HOME/registry)")

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on (0: any free one)")
    api_keys: tuple[str, ...] = Field(
        (), description="accepted API keys; none means that no key is asked for"
    )
    max_body_mb: int = Field(32, ge=1, description="largest request body in MiB; larger ones get 413")
    max_running: int = Field(1024, ge=1, description="requests in the engine at once; further ones wait")
    max_waiting: int = Field(2048, ge=0, description="requests that may wait before new ones get 429")
    max_wait_s: float = Field(60.0, gt=0, description="longest wait for a place before a request gets 503")
    drain_s: float = Field(20.0, ge=0, description="time that running requests get to finish at shutdown")
    metric_adapters: int = Field(
        100, ge=1, description="adapters with metric labels of their own; the rest is `other`"
    )

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="compute type of the engine"
    )
    threads: str = Field(
        "auto", description="cores of the CPU engine: auto, all, spare (all but one), or a list such as 0-3"
    )
    kv_cache_gb: float | None = Field(None, gt=0, description="memory of the KV cache in GiB (CPU)")
    max_model_len: int | None = Field(None, ge=16, description="context length in tokens")
    max_num_seqs: int | None = Field(None, ge=1, description="sequences in one batch")
    max_loras: int | None = Field(None, ge=1, description="slots: distinct adapters in one batch")
    max_cpu_loras: int | None = Field(None, ge=1, description="places: adapters kept in memory")
    max_lora_rank: int | None = Field(None, ge=1, description="largest adapter rank that is served")
    slot_wait_s: float = Field(
        2.0, ge=0, description="wait for a place in memory after which a busy adapter is drained"
    )
    cpu_lora: Literal["grouped", "stock"] = Field(
        "grouped", description="LoRA kernels on CPU: ours, or vLLM's own"
    )
    tool_call_parser: str = Field(
        "hermes", description="how tool calls are read from the output; `none` switches tools off"
    )
    tcmalloc: bool = Field(True, description="preload tcmalloc in the engine when the machine has it")
    allow_foreign_store: bool = Field(
        False, description="start although no adapter in the registry fits this base"
    )
    warm_start: bool = Field(
        True, description="import the engine in a second process at once and fork from it (CPU)"
    )
    engine_log: Literal["quiet", "info", "debug"] = Field(
        "quiet", description="how much the engine itself prints"
    )

    @field_validator("home", "store")
    @classmethod
    def _expand(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser().absolute()

    @field_validator("api_keys")
    @classmethod
    def _no_blank_key(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        if not all(key.strip() for key in keys):
            raise ValueError("an empty key would let everybody in; is a variable unset?")
        return keys

    @property
    def store_path(self) -> Path:
        return self.store or self.home / "registry"


@dataclass(frozen=True, slots=True)
class Loaded:
    """Effective settings, where each came from, and the flags that are vLLM's."""

    settings: Settings
    origin: Mapping[str, str]
    vllm_flags: tuple[str, ...]


def parse_command_line(argv: Sequence[str], environ: Mapping[str, str] | None = None) -> Loaded:
    """Settings from `[MODEL] [--our-flag ...] [--any-vllm-flag ...]`, the environment and `--config FILE`.

    Raises SettingsError for an unknown key in YAML or environment, or a value of the wrong type.
    """
    environ = os.environ if environ is None else environ
    known, rest = _parser().parse_known_args([_dashed(word) for word in argv])
    flags = {k: v for k, v in vars(known).items() if v is not None and k != "config"}
    if rest and not rest[0].startswith("-") and "model" not in flags:
        flags["model"] = rest.pop(0)
    path = known.config or environ.get(ENV_PREFIX + "CONFIG")
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    layers = (
        (f"file {path}", _read_yaml(Path(path)) if path else {}),
        ("environment", _from_environment(environ)),
        ("command line", flags),
    )
    for source, layer in layers:
        for key, value in layer.items():
            values[key] = value
            origin[key] = f"environment {ENV_PREFIX}{key.upper()}" if source == "environment" else source
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0]) if first["loc"] else "settings"
        shown = None if key == "api_keys" else values.get(key)
        raise SettingsError(key, shown, f"{first['msg']} (from {origin.get(key, 'default')})") from None
    return Loaded(settings, {k: origin.get(k, "default") for k in Settings.model_fields}, tuple(rest))


def _dashed(word: str) -> str:
    """`--max_model_len=8` as `--max-model-len=8`: vLLM takes both, so both must reach the same setting."""
    name = re.match(r"--[A-Za-z0-9_-]+", word)
    return name[0].replace("_", "-") + word[name.end() :] if name else word


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="onebase serve", add_help=False, allow_abbrev=False)
    parser.add_argument("--config", default=None)
    for key, field in Settings.model_fields.items():
        flag = "--" + key.replace("_", "-")
        if key in _LISTS:
            names = [flag, "--api-key"] if key == "api_keys" else [flag]
            parser.add_argument(*names, dest=key, action="append", default=None)
        elif field.annotation is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None)
        elif key == "name":
            parser.add_argument("--name", "--served-model-name", dest="name", default=None)
        else:
            parser.add_argument(flag, default=None)
    return parser


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError("config", str(path), f"cannot be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise SettingsError(
            "config", str(path), f"is not valid YAML: {' '.join(str(error).split())}"
        ) from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise SettingsError("config", str(path), "must hold `key: value` lines")
    for key in data:
        _known(str(key), f"{path}")
    return {str(k): v for k, v in data.items()}


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for variable, value in environ.items():
        if not variable.startswith(ENV_PREFIX) or variable in _NOT_SETTINGS:
            continue
        key = variable[len(ENV_PREFIX) :].lower()
        _known(key, f"environment {variable}")
        found[key] = tuple(filter(None, value.split(","))) if key in _LISTS else value
    return found


# Variables of ours that steer a process rather than a server's behaviour.
_NOT_SETTINGS = frozenset({ENV_PREFIX + "CONFIG", ENV_PREFIX + "DEBUG", ENV_PREFIX + "DATA"})


def _known(key: str, where: str) -> None:
    if key not in Settings.model_fields:
        near = difflib.get_close_matches(key, Settings.model_fields, n=1, cutoff=0.5)
        raise SettingsError(
            key, None, f"unknown setting in {where}" + (f"; did you mean `{near[0]}`?" if near else "")
        )


def explain(loaded: Loaded) -> list[tuple[str, str, str, str]]:
    """Rows (key, value, where it came from, what it is), keys hidden; for `onebase config`."""
    rows = []
    for key, field in Settings.model_fields.items():
        value = getattr(loaded.settings, key)
        shown = f"{len(value)} key(s)" if key == "api_keys" else str(value)
        rows.append((key, shown, loaded.origin[key], field.description or ""))
    return rows


def flag_help() -> list[tuple[str, str, str]]:
    """Rows (flag, kind of value, help) for `onebase serve --help`."""
    return [
        ("--" + k.replace("_", "-"), _kind(f.annotation), f.description or "")
        for k, f in Settings.model_fields.items()
    ]


def _kind(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "|".join(map(str, get_args(annotation)))
    if get_origin(annotation) in (Union, types.UnionType):
        return _kind(next(a for a in get_args(annotation) if a is not type(None)))
    return getattr(annotation, "__name__", "text").replace("str", "text").replace("tuple", "text, repeatable")
