from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from adapters.errors import BadValue
from adapters.fingerprint import PARTS, Fingerprint
from adapters.manifest import (
    AliasEntry,
    BaseRecord,
    FileEntry,
    LoraRecord,
    Manifest,
    Serving,
    Target,
    content_digest,
    digest_of,
    read_serving,
)

FINGERPRINT = Fingerprint(*(f"sha256:{part}" for part in PARTS))
FILES = (FileEntry(path="adapter_config.json", sha256="0" * 64, size=3),)


def manifest(**changes: object) -> Manifest:
    fields: dict[str, object] = {
        "name": "tenant/support",
        "version": 3,
        "digest": content_digest("lora", FILES, FINGERPRINT, None),
        "files": FILES,
        "base": BaseRecord(name="b", source="b", fingerprint=FINGERPRINT),
        "lora": LoraRecord(rank=8, alpha=16, scale=2, target_modules=("q",), parameters=1, dtype="F32"),
        "at": "2026-01-01T00:00:00+00:00",
    }
    return Manifest(**(fields | changes))


def test_the_stored_form_is_fixed() -> None:
    stored = json.loads(manifest().to_bytes())
    assert stored["schema"] == 1
    assert stored["kind"] == "lora"
    assert set(stored) == {
        "schema", "kind", "name", "version", "digest", "files", "base", "lora", "proof", "scores", "lineage",
        "serving", "upstream_url", "notes", "by", "at", "why",
    }  # fmt: skip
    assert set(stored["base"]) == {"name", "source", "revision", "fingerprint", "status", "evidence", "hint"}
    assert stored["proof"] == {"level": "static", "checks": [], "numbers": {}}
    entry = json.loads(AliasEntry(seq=1, targets=(Target(version=2),), at="now").to_bytes())
    assert entry == {"seq": 1, "targets": [{"version": 2, "weight": 1.0}], "by": None, "at": "now", "why": ""}


def test_what_is_written_is_read() -> None:
    one = manifest(scores={"exact_match": {"before": 0.0, "after": 1.0}}, serving=Serving(stop=("x",)))
    assert Manifest.model_validate_json(one.to_bytes()) == one
    assert one.ref == "tenant/support@3"
    assert one.size == 3


def test_fields_of_a_later_onebase_are_ignored() -> None:
    stored = json.loads(manifest().to_bytes()) | {"signature": "later"}
    assert Manifest.model_validate(stored) == manifest()


@pytest.mark.parametrize(
    "change",
    [{"schema": 2}, {"digest": "md5:1"}, {"version": 0}, {"kind": "dora"}, {"files": [{"path": "x"}]}],
)
def test_another_schema_is_not_guessed_at(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Manifest.model_validate(json.loads(manifest().to_bytes()) | change)


def test_the_digest_is_of_what_is_served() -> None:
    assert digest_of(manifest()) == manifest().digest
    assert digest_of(manifest(why="other", by="me", scores={"x": 1}, version=9)) == manifest().digest
    assert digest_of(manifest(serving=Serving(stop=("x",)))) != manifest().digest
    assert digest_of(manifest(kind="full", upstream_url="http://x")) != manifest().digest


def test_an_alias_leads_to_its_heaviest_target() -> None:
    def leads(*targets: tuple[int, float]) -> int | None:
        entry = AliasEntry(
            seq=1, at="", targets=tuple(Target(version=version, weight=weight) for version, weight in targets)
        )
        return entry.version

    assert leads((1, 0.2), (2, 0.8)) == 2
    assert leads((5, 0.5), (4, 0.5)) == 4
    assert leads() is None


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_weights_are_positive(weight: float) -> None:
    with pytest.raises(ValidationError):
        Target(version=1, weight=weight)


def test_serving_from_outside() -> None:
    assert read_serving(None) is None
    assert read_serving({}) is None
    assert read_serving({"stop": ["x"]}) == Serving(stop=("x",))
    with pytest.raises(BadValue, match="unknown key 'stopp'") as unknown:
        read_serving({"stopp": ["x"]})
    assert unknown.value.param == "serving.stopp"
    with pytest.raises(BadValue) as wrong:
        read_serving({"stop_token_ids": ["x"]})
    assert wrong.value.param == "serving.stop_token_ids.0"
