"""The base model: from what a person types to a folder with a fingerprint.

    open_base("smollm2-135m", home=...)       the embedded default, converted once
    open_base("org/name@rev", home=...)       a Hugging Face repository, fetched once
    open_base("/models/llama", home=...)      a local folder, used where it is

What is fetched or converted lives in `home/cache/models/<name>/` with a record of every file's SHA-256; a
folder without a sound record is built again. A fingerprint is computed once, until a file changes. This
module knows neither adapters nor engines, and loads no weights: it reads headers and hashes bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters import embedded, fingerprint, hub, model_cache, tensors
from adapters.errors import BaseBroken, BaseNotFound, BaseUnreachable
from adapters.fingerprint import Fingerprint
from adapters.tensors import TensorFile

__all__ = ["EMBEDDED", "BaseModel", "Fingerprint", "open_base", "read_modules", "weight_files"]

EMBEDDED = embedded.NAME

Progress = Callable[[str, int, int], None]

_FORMS = (
    f"a base is a local folder, a Hugging Face id (`org/name` or `org/name@revision`), "
    f"or the embedded `{EMBEDDED}`"
)
EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings")


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A base that is on this disk, whole.

    `modules` maps every linear and embedding module, by its path in the checkpoint, to the shape of its
    weight: (out_features, in_features), for an embedding (vocabulary, width).
    """

    name: str
    folder: Path
    source: str
    revision: str | None
    fingerprint: Fingerprint
    modules: Mapping[str, tuple[int, int]]
    config: dict[str, Any]
    aliases: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that means this base."""
        return (self.name, *self.aliases)


def open_base(
    spec: str,
    *,
    home: Path,
    revision: str | None = None,
    name: str | None = None,
    progress: Progress | None = None,
) -> BaseModel:
    """Find, fetch or convert the base `spec`; raises BaseNotFound, BaseUnreachable, BaseBroken or StoreFull.

    `progress(stage, done, total)` is told about the stages "download", "convert" and "check".
    """
    report = progress or _silent
    models = home / "cache" / "models"
    kind = _kind(spec)
    commit = revision
    aliases: tuple[str, ...] = ()
    if kind == "embedded":
        if revision is not None:
            raise BaseNotFound(f"revision {revision!r}: the embedded base `{EMBEDDED}` has only one.")
        folder = model_cache.embedded_folder(models, report)
        served, aliases = EMBEDDED, embedded.ALIASES
    elif kind == "folder":
        if revision is not None:
            raise BaseNotFound(f"revision {revision!r}: the base {spec!r} is a local folder and has none.")
        folder = Path(spec).expanduser().resolve()
        served = _sanitised(folder.name)
    else:
        repo, inline = hub.split_revision(spec)
        if inline and revision and inline != revision:
            raise BaseNotFound(
                f"The base {spec!r} names revision {inline!r}, and revision={revision!r} was given."
            )
        folder, commit = model_cache.hub_folder(models, repo, inline or revision, report)
        served, aliases = repo, (repo.partition("/")[2],)
    return _read(folder, name or served, spec, commit, aliases, home, report)


def _silent(stage: str, done: int, total: int) -> None:
    """Nobody wants to know."""


def _kind(spec: str) -> str:
    if spec == EMBEDDED:
        return "embedded"
    if not spec or "\0" in spec:
        raise BaseNotFound(f"The base {spec!r} is not a name: {_FORMS}.")
    path = Path(spec).expanduser()
    if path.is_dir():
        return "folder"
    if path.is_file():
        raise BaseNotFound(f"The base {spec!r} is a file: {_FORMS}.")
    if hub.REPO.fullmatch(hub.split_revision(spec)[0]):
        return "hub"
    if "/" in spec or spec.startswith((".", "~")):
        raise BaseNotFound(f"There is no folder {str(path)!r}; {_FORMS}.")
    raise BaseNotFound(f"There is no base {spec!r}; {_FORMS}.")


def _sanitised(text: str) -> str:
    """A served name out of a folder's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).lstrip("-._")[:96] or "base"


def _read(
    folder: Path,
    name: str,
    source: str,
    revision: str | None,
    aliases: tuple[str, ...],
    home: Path,
    report: Progress,
) -> BaseModel:
    try:
        config = read_config(folder)
        files = [_header(path) for path in weight_files(folder)]
        modules = read_modules(files, config)
        memory = fingerprint.Memory(home / "cache" / "fingerprints")
        found = memory.recall(folder)
        if found is None:
            at = fingerprint.stamp(folder, fingerprint.stamped_names(folder))
            found = _fingerprint(folder, config, files, lambda done, total: report("check", done, total))
            memory.keep(folder, at, found)
    except OSError as error:
        raise BaseUnreachable(f"The base in {folder} cannot be read: {error.strerror or error}.") from error
    return BaseModel(name, folder, source, revision, found, modules, config, aliases)


def read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise BaseBroken(f"The folder {folder} has no config.json, so it is not a model folder; {_FORMS}.")
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise BaseBroken(f"{path} is not JSON. Fetch the model again.") from None
    if not isinstance(config, dict) or not (config.get("architectures") or config.get("model_type")):
        raise BaseBroken(f"{path} names no architecture (`architectures`). Fetch the model again.")
    return config


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up the model, in the order of their names."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
            raise BaseBroken(
                f"{index} cannot be read as an index of weights. Fetch the model again."
            ) from None
        for name in names:
            if Path(name).name != name or not (folder / name).is_file():
                raise BaseBroken(
                    f"{index.name} names {name!r}, which is not in {folder}. Fetch the model again."
                )
        return [folder / name for name in names]
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    found = sorted(path for path in folder.glob("*.safetensors") if path.name != "adapter_model.safetensors")
    if found:
        return found
    others = sorted(path.name for path in folder.iterdir() if path.suffix in {".bin", ".pt", ".pth", ".gguf"})
    if others:
        raise BaseBroken(
            f"The base in {folder} has its weights only as {others[0]}; OneBase reads safetensors and never "
            "unpickles. Convert it (`model.save_pretrained(folder)` of a current transformers writes "
            "safetensors)."
        )
    raise BaseBroken(f"The folder {folder} holds no weights (*.safetensors); {_FORMS}.")


def _header(path: Path) -> TensorFile:
    try:
        return tensors.read_header(path)
    except tensors.TensorFileError as error:
        raise BaseBroken(f"The weights {path} are damaged: {error}. Fetch the model again.") from None


def read_modules(files: list[TensorFile], config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Every weight matrix by module path; a tied output head is listed although no file stores it."""
    modules: dict[str, tuple[int, int]] = {}
    for file in files:
        for tensor in file.tensors.values():
            if tensor.name.endswith(".weight") and len(tensor.shape) == 2:
                rows, columns = tensor.shape
                modules[tensor.name.removesuffix(".weight")] = (rows, columns)
    text_config = config.get("text_config")
    tied = config.get("tie_word_embeddings")
    if tied is None and isinstance(text_config, dict):
        tied = text_config.get("tie_word_embeddings")
    if tied and "lm_head" not in modules:
        for path, shape in list(modules.items()):
            if path.rpartition(".")[2] in EMBEDDINGS:
                modules["lm_head"] = shape
                break
    return dict(sorted(modules.items()))


def _fingerprint(
    folder: Path,
    config: Mapping[str, Any],
    files: list[TensorFile],
    progress: Callable[[int, int], None],
) -> Fingerprint:
    architectures = config.get("architectures")
    architecture = (
        architectures[0] if isinstance(architectures, list) and architectures else config["model_type"]
    )
    try:
        tokenizer = fingerprint.tokenizer_hash(folder)
        template = fingerprint.chat_template(folder)
    except (ValueError, KeyError, TypeError) as error:
        raise BaseBroken(
            f"The tokenizer in {folder} cannot be read: {error}. Fetch the model again."
        ) from None
    if tokenizer is None:
        raise BaseBroken(f"The base in {folder} has no tokenizer (tokenizer.json or tokenizer.model).")
    return Fingerprint(
        architecture=str(architecture),
        shapes=fingerprint.shapes_hash(files),
        tokenizer=tokenizer,
        chat_template=fingerprint.chat_template_hash(template),
        weights=fingerprint.weights_hash([file.path for file in files], progress),
    )
