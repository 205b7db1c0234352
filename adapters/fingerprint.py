"""What makes two base models the same: architecture, shapes, tokenizer, chat template, weights.

Each part is hashed on its own, so that a mismatch can be named. The tokenizer is hashed by content (tokens
and their ids, merges), since the same tokenizer is serialised differently by different library versions.
Reading a model's weights takes seconds; `Memory` keeps the result until one of the files changes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adapters import disk
from adapters.tensors import TensorFile

PARTS = ("architecture", "shapes", "tokenizer", "chat_template", "weights")
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model", "spiece.model")


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """`architecture` is a class name; the others are "sha256:..."."""

    architecture: str
    shapes: str
    tokenizer: str
    chat_template: str
    weights: str

    @property
    def digest(self) -> str:
        """One hash over all five."""
        return _hash(canonical(self.to_json()))

    def to_json(self) -> dict[str, str]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Fingerprint:
        """Raises ValueError when a part is missing or not text."""
        parts = {part: data.get(part) for part in PARTS}
        for part, value in parts.items():
            if not isinstance(value, str):
                raise ValueError(f"the fingerprint's `{part}` is missing or not text")
        return cls(**{part: str(value) for part, value in parts.items()})

    def differences(self, other: Fingerprint) -> list[str]:
        """The names of the parts in which two fingerprints differ."""
        return [part for part in PARTS if getattr(self, part) != getattr(other, part)]


def canonical(data: object) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(
        "utf-8", "surrogatepass"
    )


def _hash(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def shapes_hash(files: list[TensorFile]) -> str:
    """Over every tensor's name and shape; how they are spread over files does not matter."""
    return _hash(canonical(sorted([t.name, list(t.shape)] for file in files for t in file.tensors.values())))


def weights_hash(files: list[Path], progress: Callable[[int, int], None] | None = None) -> str:
    """Over the bytes of the weight files in the order of their names."""
    total = sum(path.stat().st_size for path in files)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    hashes = [disk.sha256_file(path, advance) for path in sorted(files, key=lambda one: one.name)]
    if len(hashes) == 1:
        return "sha256:" + hashes[0]  # what `sha256sum model.safetensors` prints
    return _hash(canonical(hashes))


def tokenizer_hash(folder: Path) -> str | None:
    """By content where the format is open JSON, by bytes otherwise; None when the folder has no tokenizer.

    Raises ValueError when a tokenizer file is there and cannot be read.
    """
    full = folder / "tokenizer.json"
    if full.is_file():
        return _hash(canonical(_canonical_tokenizer(_load_table(full))))
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    if vocabulary.is_file() and merges.is_file():
        lines = merges.read_text("utf-8").splitlines()
        pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
        return _hash(canonical({"type": "BPE", "tokens": _load_table(vocabulary), "merges": pairs}))
    for name in ("tokenizer.model", "spiece.model", "tiktoken.model"):
        if (folder / name).is_file():
            return "sha256:" + disk.sha256_file(folder / name)
    return None


def _canonical_tokenizer(data: dict[str, Any]) -> dict[str, Any]:
    """Tokens with their ids, merges and added tokens of a tokenizer.json."""
    model = data.get("model")
    if not isinstance(model, dict):
        raise ValueError("tokenizer.json has no `model`")
    vocabulary = model.get("vocab", {})
    if isinstance(vocabulary, list):  # Unigram: [token, score] in the order of their ids
        tokens: dict[str, Any] = {
            str(token): [number, score] for number, (token, score) in enumerate(vocabulary)
        }
    elif isinstance(vocabulary, dict):
        tokens = dict(vocabulary)
    else:
        raise ValueError("tokenizer.json has a vocabulary that is neither a table nor a list")
    added: list[str] = []
    for token in data.get("added_tokens") or []:
        content = str(token["content"])
        added.append(content)
        tokens.setdefault(content, token["id"])
    merges = [pair.split(" ") if isinstance(pair, str) else list(pair) for pair in model.get("merges") or []]
    return {"type": model.get("type"), "tokens": tokens, "merges": merges, "added": sorted(added)}


def _load_table(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise ValueError(f"{path.name} is not JSON") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    return data


def chat_template(folder: Path) -> str | None:
    """The folder's chat template: its own file, else the one in tokenizer_config.json."""
    single = folder / "chat_template.jinja"
    if single.is_file():
        return single.read_text("utf-8")
    config = folder / "tokenizer_config.json"
    template = _load_table(config).get("chat_template") if config.is_file() else None
    if isinstance(template, list):  # several by name; `default` is what a chat uses
        named = {str(one["name"]): one["template"] for one in template if isinstance(one, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def chat_template_hash(template: str | None) -> str:
    # The trailing newline depends on who wrote the file, not on the template.
    return _hash(("" if template is None else template.rstrip("\n")).encode())


Stamp = dict[str, list[int]]


def stamp(folder: Path, names: list[str]) -> Stamp:
    """What changes when a file changes: size, modification and status times, inode.

    The status time cannot be set back by a program, so a restored modification time does not hide a change.
    """
    result: Stamp = {}
    for name in sorted(names):
        status = (folder / name).stat()
        result[name] = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    return result


def stamped_names(folder: Path) -> list[str]:
    """The files of a model folder that a fingerprint depends on."""
    wanted = {
        "config.json",
        "chat_template.jinja",
        "tokenizer_config.json",
        "tiktoken.model",
        *_TOKENIZER_FILES,
    }
    return [
        entry.name
        for entry in os.scandir(folder)
        if entry.is_file() and (entry.name in wanted or entry.name.endswith((".safetensors", ".index.json")))
    ]


@dataclass(frozen=True, slots=True)
class Memory:
    """Fingerprints on disk, one small file per model folder; losing them only costs time."""

    folder: Path

    def _path(self, model: Path) -> Path:
        return self.folder / (disk.sha256_bytes(os.fsencode(model)) + ".json")

    def recall(self, model: Path) -> Fingerprint | None:
        try:
            data = json.loads(self._path(model).read_bytes())
            if data["stamp"] != stamp(model, stamped_names(model)):
                return None
            return Fingerprint.from_json(data["fingerprint"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep(self, model: Path, at: Stamp, fingerprint: Fingerprint) -> None:
        """`at` is the stamp taken before the files were read, so a change in between is not hidden."""
        record = {"folder": str(model), "stamp": at, "fingerprint": fingerprint.to_json()}
        disk.replace_file(self._path(model), json.dumps(record, indent=1).encode())
