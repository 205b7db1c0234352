from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from adapters import embedded, fingerprint
from adapters.base import BaseModel, open_base
from adapters.errors import BaseBroken, BaseNotFound, BaseUnreachable, StoreFull
from adapters.fingerprint import PARTS, Fingerprint
from tests.adapters.conftest import tokenizer, write_base


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_base(tmp_path / "Tiny Base")


def opened(folder: Path) -> BaseModel:
    return open_base(str(folder), home=folder.parent / "home")


def test_a_local_folder(folder: Path) -> None:
    base = opened(folder)
    assert base.name == "Tiny-Base"
    assert (base.folder, base.source, base.revision) == (folder, str(folder), None)
    assert base.modules["model.layers.2.self_attn.v_proj"] == (8, 16)
    assert base.modules["lm_head"] == base.modules["model.embed_tokens"] == (32, 16)  # tied
    assert "model.layers.0.input_layernorm" not in base.modules
    assert base.fingerprint.architecture == "LlamaForCausalLM"


def test_a_given_name_wins(folder: Path) -> None:
    assert open_base(str(folder), home=folder.parent, name="mine").names == ("mine",)


def test_an_untied_model_has_no_invented_head(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    assert "lm_head" not in opened(folder).modules


def test_shards_are_one_model(folder: Path) -> None:
    whole = opened(folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"model-1-of-2.safetensors": names[::2], "model-2-of-2.safetensors": names[1::2]}
    for file, mine in parts.items():
        save_file({name: weights[name] for name in mine}, folder / file)
    index = {"weight_map": {name: file for file, mine in parts.items() for name in mine}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    sharded = opened(folder)
    assert sharded.modules == whole.modules
    assert sharded.fingerprint.differences(whole.fingerprint) == ["weights"]
    (folder / "model-2-of-2.safetensors").unlink()
    with pytest.raises(BaseBroken, match="names 'model-2-of-2"):
        opened(folder)


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("nothing-like-that", "the embedded `smollm2-135m`"),
        ("./nowhere", "no folder"),
        ("/nowhere/at/all", "no folder"),
        ("a/b/c", "no folder"),
        ("", "not a name"),
        ("a\0b", "not a name"),
    ],
)
def test_not_found_says_what_is_accepted(spec: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(BaseNotFound, match=hint) as caught:
        open_base(spec, home=tmp_path)
    assert "`org/name@revision`" in caught.value.message


def test_a_file_is_no_base(folder: Path) -> None:
    with pytest.raises(BaseNotFound, match="is a file"):
        open_base(str(folder / "config.json"), home=folder.parent)


@pytest.mark.parametrize("spec", ["smollm2-135m", "folder"])
def test_a_revision_needs_a_repository(spec: str, folder: Path) -> None:
    with pytest.raises(BaseNotFound, match="revision"):
        open_base(str(folder) if spec == "folder" else spec, home=folder.parent, revision="main")


def test_two_revisions_contradict(tmp_path: Path) -> None:
    with pytest.raises(BaseNotFound, match="'a', and revision='b'"):
        open_base("org/name@a", home=tmp_path, revision="b")


def break_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def no_architecture(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def break_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("[]")


def cut_weights(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-10])


def only_bin(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def break_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("{}")


@pytest.mark.parametrize(
    ("spoil", "hint"),
    [
        (break_config, "config.json is not JSON"),
        (no_config, "has no config.json"),
        (no_architecture, "names no architecture"),
        (no_tokenizer, "has no tokenizer"),
        (break_tokenizer, "not a JSON object"),
        (cut_weights, "damaged"),
        (only_bin, "never unpickles"),
        (no_weights, "holds no weights"),
        (break_index, "cannot be read as an index"),
    ],
)
def test_a_broken_folder_is_named(spoil: object, hint: str, folder: Path) -> None:
    assert callable(spoil)
    spoil(folder)
    with pytest.raises(BaseBroken, match=hint) as caught:
        opened(folder)
    assert str(folder) in caught.value.message


# Fingerprint ----------------------------------------------------------------------------------------------


def test_each_part_changes_for_its_own_cause(folder: Path, tmp_path: Path) -> None:
    first = opened(folder).fingerprint
    other_seed = opened(write_base(tmp_path / "seed", seed=1)).fingerprint
    wider = opened(write_base(tmp_path / "wider", hidden=8)).fingerprint
    assert first.differences(other_seed) == ["weights"]
    assert first.differences(wider) == ["shapes", "weights"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer({"new": 32})))
    (folder / "chat_template.jinja").write_text("{{ 1 }}")
    assert first.differences(opened(folder).fingerprint) == ["tokenizer", "chat_template"]


def test_round_trip() -> None:
    one = Fingerprint(*(f"sha256:{part}" for part in PARTS))
    assert Fingerprint.from_json(one.to_json()) == one
    assert one.digest.startswith("sha256:")
    with pytest.raises(ValueError, match="weights"):
        Fingerprint.from_json({**one.to_json(), "weights": None})


def test_computed_once_until_a_file_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    compute = fingerprint.weights_hash

    def counted(*args: object) -> str:
        calls.append(1)
        return compute(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(fingerprint, "weights_hash", counted)
    first = opened(folder).fingerprint
    assert opened(folder).fingerprint == first
    assert len(calls) == 1
    path = folder / "model.safetensors"
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # hidden from size and modification time
    assert opened(folder).fingerprint.differences(first) == ["weights"]
    assert len(calls) == 2


def test_a_damaged_memory_only_costs_time(folder: Path) -> None:
    first = opened(folder).fingerprint
    for path in (folder.parent / "home" / "cache" / "fingerprints").iterdir():
        path.write_text("{}")
    assert opened(folder).fingerprint == first


def test_progress_reaches_its_total(folder: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    open_base(str(folder), home=folder.parent / "home", progress=lambda *one: seen.append(one))
    assert seen[-1] == ("check", seen[-1][2], seen[-1][2])


def test_templates_by_name(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "y"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert fingerprint.chat_template(folder) == "y"


def test_other_tokenizers(tmp_path: Path) -> None:
    assert fingerprint.tokenizer_hash(tmp_path) is None
    (tmp_path / "tokenizer.model").write_bytes(b"pieces")
    by_bytes = fingerprint.tokenizer_hash(tmp_path)
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    pairs = fingerprint.tokenizer_hash(tmp_path)
    unigram = {"model": {"type": "Unigram", "vocab": [["a", 0.5], ["b", -1.0]]}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(unigram))
    assert len({by_bytes, pairs, fingerprint.tokenizer_hash(tmp_path)}) == 3


# The cache of built models ----------------------------------------------------------------------------------


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The embedded model, built as the tiny one; the list grows by one with each build."""
    done: list[Path] = []

    def build(target: Path, models: Path, progress: object) -> None:
        target.rmdir()
        write_base(target, seed=len(done))
        done.append(target)

    monkeypatch.setattr(embedded, "build", build)
    monkeypatch.setattr(embedded, "BYTES_NEEDED", 1)
    return done


def test_the_embedded_base_is_built_once(builds: list[Path], home: Path) -> None:
    first = open_base("smollm2-135m", home=home)
    assert open_base("smollm2-135m", home=home) == first
    assert len(builds) == 1
    assert first.folder == home / "cache" / "models" / "smollm2-135m"
    assert "HuggingFaceTB/SmolLM2-135M-Instruct" in first.names
    record = json.loads((first.folder / ".onebase.json").read_text())
    assert set(record["files"]) == {path.name for path in first.folder.iterdir()} - {".onebase.json"}


@pytest.mark.parametrize("damage", ["flip", "cut", "delete", "record", "no record"])
def test_a_broken_cache_is_built_again(damage: str, builds: list[Path], home: Path) -> None:
    folder = open_base("smollm2-135m", home=home).folder
    weights = folder / "model.safetensors"
    if damage == "flip":
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif damage == "delete":
        weights.unlink()
    elif damage == "record":
        (folder / ".onebase.json").write_text("{")
    else:
        (folder / ".onebase.json").unlink()
    assert opened_twice(home) == (2, folder)
    assert len(builds) == 2


def opened_twice(home: Path) -> tuple[int, Path]:
    bases = [open_base("smollm2-135m", home=home) for _ in range(2)]
    return len(bases), bases[-1].folder


def test_a_half_done_build_is_not_used(builds: list[Path], home: Path) -> None:
    partial = home / "cache" / "models" / ".smollm2-135m.partial"
    partial.mkdir(parents=True)
    (partial / "model.safetensors").write_bytes(b"half")
    (partial / "left over").write_bytes(b"x")
    folder = open_base("smollm2-135m", home=home).folder
    assert not (folder / "left over").exists()
    assert not partial.exists()


def test_a_copied_cache_is_kept(builds: list[Path], home: Path) -> None:
    folder = open_base("smollm2-135m", home=home).folder
    for path in folder.iterdir():
        os.utime(path, (1, 1))
    for _ in range(2):
        open_base("smollm2-135m", home=home)
    assert len(builds) == 1


def test_no_space(builds: list[Path], home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "BYTES_NEEDED", 1 << 60)
    with pytest.raises(StoreFull, match="are free"):
        open_base("smollm2-135m", home=home)
    monkeypatch.setattr(embedded, "BYTES_NEEDED", 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(embedded, "build", full)
    with pytest.raises(StoreFull, match="No space left"):
        open_base("smollm2-135m", home=home)
    assert not (home / "cache" / "models" / "smollm2-135m").exists()


def test_an_unwritable_home(builds: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BaseUnreachable, match="preparing the base"):
        open_base("smollm2-135m", home=tmp_path / "file")


def test_a_quantised_tensor_is_not_a_module(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.experts"] = np.zeros((2, 3, 4), np.float32)
    save_file(weights, folder / "model.safetensors")
    assert "model.layers.0.mlp.experts" not in opened(folder).modules
