"""What a version is, as it is written into the store: schema 1, never changed once written.

`Manifest` is one immutable version, `AliasEntry` one line of an alias's log, `RetireEntry` one line of a
version's. The digest covers what is served (files, base, serving block), not who published it or how it
scored. Later work adds fields; a reader ignores those that it does not know.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from adapters.errors import BadValue
from adapters.fingerprint import Fingerprint, canonical

SCHEMA = 1

Hex = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
Kind = Literal["lora", "merged", "full"]
ProofLevel = Literal["static", "effect", "parity", "benefit"]
BaseStatus = Literal["verified", "unverified"]
Evidence = Literal["weights", "name", "accepted"]
Scores = dict[str, Any]


class Record(BaseModel):
    """Read leniently (a later OneBase may add fields), written completely, never altered."""

    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)

    def to_bytes(self) -> bytes:
        return self.model_dump_json(by_alias=True, indent=1).encode() + b"\n"


# A plain name: joined to a folder it cannot lead out of it.
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,254}$")]


class FileEntry(Record):
    path: FileName
    sha256: Hex
    size: int = Field(ge=0)


class BaseRecord(Record):
    """The base that a version was checked against, and how sure it is that it was trained on it."""

    name: str
    source: str
    revision: str | None = None
    fingerprint: Fingerprint
    status: BaseStatus = "unverified"
    evidence: Evidence | None = None  # what made it verified
    hint: str | None = None  # what the adapter itself calls its base


class LoraRecord(Record):
    rank: int = Field(ge=1)
    alpha: float
    scale: float
    use_rslora: bool = False
    target_modules: tuple[str, ...]
    parameters: int = Field(ge=1)
    dtype: str


class Proof(Record):
    """How far the claim that this version works has been tested."""

    level: ProofLevel = "static"
    checks: tuple[str, ...] = ()
    numbers: dict[str, Any] = Field(default_factory=dict)


class Serving(Record):
    """What is applied to each request for this version; unknown keys are refused where it is written."""

    chat_template: str | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    generation: dict[str, Any] = Field(default_factory=dict)
    tool_parser: str | None = None


class Manifest(Record):
    schema_version: Literal[1] = Field(default=1, alias="schema")
    kind: Kind = "lora"
    name: str
    version: int = Field(ge=1)
    digest: Digest
    files: tuple[FileEntry, ...]
    base: BaseRecord
    lora: LoraRecord | None = None
    proof: Proof = Field(default_factory=Proof)
    scores: Scores = Field(default_factory=dict)
    lineage: dict[str, Any] = Field(default_factory=dict)
    serving: Serving | None = None
    upstream_url: str | None = None
    notes: tuple[str, ...] = ()
    by: str | None = None
    at: str
    why: str = ""

    @property
    def ref(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


class Target(Record):
    version: int = Field(ge=1)
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)


class AliasEntry(Record):
    """One move of an alias; the entry with the highest `seq` holds. No targets: the alias was dropped."""

    seq: int = Field(ge=1)
    targets: tuple[Target, ...]
    by: str | None = None
    at: str
    why: str = ""

    @property
    def version(self) -> int | None:
        """The version this entry leads to: the heaviest target, the lowest version among equals."""
        if not self.targets:
            return None
        return min(self.targets, key=lambda target: (-target.weight, target.version)).version


class RetireEntry(Record):
    """One hiding or showing again of a version; the entry with the highest `seq` holds."""

    seq: int = Field(ge=1)
    retired: bool
    by: str | None = None
    at: str
    why: str = ""


def content_digest(
    kind: Kind,
    files: tuple[FileEntry, ...],
    base: Fingerprint,
    serving: Serving | None,
    upstream_url: str | None = None,
) -> str:
    """What identifies a version's content: two versions with one digest answer alike."""
    content = {
        "kind": kind,
        "files": sorted([file.path, file.sha256, file.size] for file in files),
        "base": base.to_json(),
        "serving": serving.model_dump(mode="json") if serving else None,
        "upstream_url": upstream_url,
    }
    return "sha256:" + hashlib.sha256(canonical(content)).hexdigest()


def digest_of(manifest: Manifest) -> str:
    """The digest as it follows from the manifest's content; differs from `.digest` after damage."""
    return content_digest(
        manifest.kind, manifest.files, manifest.base.fingerprint, manifest.serving, manifest.upstream_url
    )


def read_serving(data: dict[str, Any] | Serving | None) -> Serving | None:
    """A serving block from outside: unknown keys and wrong types are refused, an empty one is None."""
    if data is None:
        return None
    if isinstance(data, dict):
        unknown = sorted(set(data) - set(Serving.model_fields))
        if unknown:
            raise BadValue(
                f"serving has the unknown key {unknown[0]!r}. It knows: {', '.join(Serving.model_fields)}.",
                code="bad_serving",
                param=f"serving.{unknown[0]}",
            )
        try:
            data = Serving.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(["serving", *(str(part) for part in first["loc"])])
            raise BadValue(f"{where}: {first['msg']}.", code="bad_serving", param=where) from None
    return None if data == Serving() else data
