from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from adapters import check, folder, manifest
from adapters.base import BaseModel
from adapters.check import REASONS, check_folder
from adapters.errors import Refused
from tests.bad_adapters import BAD, CONFIG, GOOD, PREFIX, RANK, WEIGHTS, Draft, embedding, good

# Refusals that need more than a folder's content; each has its own test below.
ELSEWHERE = {
    "missing_folder",
    "symlink_outside",
    "broken_symlink",
    "file_too_large",
    "unreadable",
    "changed_while_read",
}
# Names of other methods that only tensors or settings of one spelling lead to.
SOURCES = Path(check.__file__).parent


def refusal(path: Path, base: BaseModel, **options: object) -> Refused:
    with pytest.raises(Refused) as caught:
        check_folder(path, base, **options)  # type: ignore[arg-type]
    return caught.value


@pytest.mark.parametrize("name", BAD)
def test_refused_with_its_own_reason(
    name: str, base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    error = refusal(BAD[name].build(tmp_path / "adapter", base), base)
    assert error.reason == BAD[name].reason, error.message
    assert error.code == error.reason
    assert len(error.message) > 40
    assert error.message.rstrip().endswith(".")
    assert not (tmp_path / "PWNED").exists()


def test_every_reason_is_listed_and_tested() -> None:
    raised = set()
    for path in SOURCES.glob("*.py"):
        raised |= set(re.findall(r'Refused\(\s*"(\w+)"', path.read_text()))
    assert raised <= set(REASONS)
    assert set(REASONS) == {case.reason for case in BAD.values()} | ELSEWHERE


@pytest.mark.parametrize("name", GOOD)
def test_unusual_and_fine(name: str, base: BaseModel, tmp_path: Path) -> None:
    draft = good(base)
    GOOD[name](draft)
    checked = check_folder(draft.write(tmp_path / "adapter"), base)
    (tmp_path / "kept").mkdir()
    kept = checked.write(tmp_path / "kept")
    assert [file.path for file in kept] == [CONFIG, WEIGHTS]
    again = check_folder(tmp_path / "kept", base)
    assert again.rewrite is None  # what is kept needs no further mending
    assert again.parameters == checked.parameters


def test_what_is_told_of_a_sound_adapter(base: BaseModel, tmp_path: Path) -> None:
    checked = check_folder(good(base).write(tmp_path / "adapter"), base)
    assert (checked.rank, checked.alpha, checked.scale) == (RANK, 2 * RANK, 2.0)
    assert checked.target_modules == ("down_proj", "q_proj", "v_proj")
    assert checked.parameters == 3 * RANK * ((16 + 16) + (16 + 8) + (24 + 16))
    assert checked.dtype == "F32"
    assert checked.rewrite is None
    assert checked.serving is None
    assert (checked.base_verified, checked.base_hint) == ("unverified", "somewhere/else")
    assert "--accept-base" in checked.notes[0]


def test_rslora_scale(base: BaseModel, tmp_path: Path) -> None:
    draft = good(base)
    draft.config["use_rslora"] = True
    assert check_folder(draft.write(tmp_path / "a"), base).scale == pytest.approx(8 / RANK**0.5)


def test_max_rank(base: BaseModel, tmp_path: Path) -> None:
    path = good(base).write(tmp_path / "adapter")
    assert refusal(path, base, max_rank=RANK - 1).reason == "rank_too_large"
    assert check_folder(path, base, max_rank=RANK).rank == RANK


def test_a_pattern_counts_towards_the_rank(base: BaseModel, tmp_path: Path) -> None:
    draft = good(base)
    GOOD["rank_and_alpha_patterns"](draft)
    path = draft.write(tmp_path / "adapter")
    assert refusal(path, base, max_rank=RANK).reason == "rank_too_large"
    checked = check_folder(path, base)
    assert checked.rank == 8
    assert any("differ between modules" in note for note in checked.notes)


def test_the_message_names_tensor_and_shapes(base: BaseModel, tmp_path: Path) -> None:
    error = refusal(BAD["one_middle_layer"].build(tmp_path / "adapter", base), base)
    assert error.param is not None
    assert error.param.endswith("lora_A.weight")
    assert error.param in error.message
    assert "8 of 9 modules fit" in error.message


def test_copies_of_the_base_are_left_out(base: BaseModel, tmp_path: Path) -> None:
    draft = good(base)
    GOOD["lora_on_embeddings_with_a_copy"](draft)
    checked = check_folder(draft.write(tmp_path / "adapter"), base)
    (tmp_path / "kept").mkdir()
    checked.write(tmp_path / "kept")
    stored = load_file(tmp_path / "kept" / WEIGHTS)
    assert set(stored) == {name for name in draft.tensors if "base_layer" not in name}
    assert all(np.array_equal(stored[name], draft.tensors[name]) for name in stored)
    assert "left out" in checked.notes[0]


def test_a_rounded_copy_counts_as_a_copy(base: BaseModel, tmp_path: Path) -> None:
    draft = good(base)
    GOOD["copy_of_the_head"](draft)
    name = f"{PREFIX}lm_head.weight"
    bits = draft.tensors[name].view(np.uint32).astype(np.uint64)
    draft.tensors[name] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    assert check_folder(draft.write(tmp_path / "bfloat16"), base).rewrite is not None
    draft.tensors[name][0, 0] ^= 1
    assert refusal(draft.write(tmp_path / "changed"), base).reason == "changed_embeddings"


def test_the_prefix_is_added(base: BaseModel, tmp_path: Path) -> None:
    draft = good(base)
    GOOD["without_prefix"](draft)
    checked = check_folder(draft.write(tmp_path / "adapter"), base)
    (tmp_path / "kept").mkdir()
    checked.write(tmp_path / "kept")
    assert set(load_file(tmp_path / "kept" / WEIGHTS)) == {PREFIX + name for name in draft.tensors}


def test_another_chat_template_is_served(base: BaseModel, tmp_path: Path) -> None:
    draft = good(base)
    draft.files["chat_template.jinja"] = b"{{ 'other' }}"
    assert check_folder(draft.write(tmp_path / "a"), base).serving == manifest.Serving(
        chat_template="{{ 'other' }}"
    )
    draft.files["chat_template.jinja"] = b"{{ messages }}"  # the base's, without its trailing newline
    assert check_folder(draft.write(tmp_path / "b"), base).serving is None


def test_the_same_tokenizer_written_otherwise(base: BaseModel, tmp_path: Path) -> None:
    data = json.loads((base.folder / "tokenizer.json").read_bytes())
    data["model"]["merges"] = [pair.split(" ") for pair in data["model"]["merges"]]
    data["model"]["vocab"] = dict(reversed(data["model"]["vocab"].items()))
    draft = good(base)
    draft.files["tokenizer.json"] = json.dumps(data, indent=3).encode()
    check_folder(draft.write(tmp_path / "adapter"), base)


# How sure the base is -------------------------------------------------------------------------------------


def recorded(draft: Draft, **changes: str) -> Draft:
    fingerprint = draft.base.fingerprint.to_json() | changes
    record = {"base": "b", "base_fingerprint": fingerprint, "lineage": {"seed": 7}}
    draft.files["onebase.json"] = json.dumps(record).encode()
    return draft


def test_verified_by_recorded_weights(base: BaseModel, tmp_path: Path) -> None:
    checked = check_folder(recorded(good(base)).write(tmp_path / "adapter"), base)
    assert (checked.base_verified, checked.evidence) == ("verified", "weights")
    assert checked.lineage == {"seed": 7}


def test_other_weights_can_be_accepted(base: BaseModel, tmp_path: Path) -> None:
    path = recorded(good(base), weights="sha256:" + "0" * 64).write(tmp_path / "adapter")
    assert "--accept-base" in refusal(path, base).message
    checked = check_folder(path, base, accept_base=True)
    assert (checked.base_verified, checked.evidence) == ("verified", "accepted")
    assert "other weights" in checked.notes[0]


def test_another_tokenizer_cannot_be_accepted(base: BaseModel, tmp_path: Path) -> None:
    path = recorded(good(base), tokenizer="sha256:" + "0" * 64).write(tmp_path / "adapter")
    assert refusal(path, base, accept_base=True).reason == "other_tokenizer"


@pytest.mark.parametrize(
    ("hint", "accept", "expected"),
    [
        ("tiny-base", False, ("verified", "name")),
        ("meta-llama/Llama-3-8B", False, ("unverified", None)),
        ("meta-llama/Llama-3-8B", True, ("verified", "accepted")),
        (None, False, ("unverified", None)),
    ],
)
def test_a_name_is_a_hint(
    hint: str | None, accept: bool, expected: object, base: BaseModel, tmp_path: Path
) -> None:
    draft = good(base)
    draft.config["base_model_name_or_path"] = hint
    checked = check_folder(draft.write(tmp_path / "adapter"), base, accept_base=accept)
    assert (checked.base_verified, checked.evidence) == expected


# Refusals that need more than content ---------------------------------------------------------------------


def test_missing_folder(base: BaseModel, tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere", base).reason == "missing_folder"
    (tmp_path / "file").touch()
    assert refusal(tmp_path / "file", base).reason == "missing_folder"


def test_links(base: BaseModel, tmp_path: Path) -> None:
    path = good(base).write(tmp_path / "adapter")
    (path / "notes.md").symlink_to(path / CONFIG)  # inside: fine
    check_folder(path, base)
    (tmp_path / "secret.json").write_text("{}")
    (path / "secret.json").symlink_to(tmp_path / "secret.json")
    error = refusal(path, base)
    assert error.reason == "symlink_outside"
    assert "cp -rL" in error.message
    (path / "secret.json").unlink()
    (path / "gone.json").symlink_to(path / "nothing")
    assert refusal(path, base).reason == "broken_symlink"


def test_a_linked_folder_may_leave_neither(base: BaseModel, tmp_path: Path) -> None:
    path = good(base).write(tmp_path / "adapter")
    (path / ".cache").symlink_to("/")
    assert refusal(path, base).reason == "symlink_outside"


def test_a_pipe_is_not_read(base: BaseModel, tmp_path: Path) -> None:
    path = good(base).write(tmp_path / "adapter")
    os.mkfifo(path / "pipe.json")
    assert refusal(path, base).reason == "unexpected_file"


@pytest.mark.parametrize("name", [WEIGHTS, "tokenizer.json"])
def test_a_file_too_large(name: str, base: BaseModel, tmp_path: Path) -> None:
    path = good(base).write(tmp_path / "adapter")
    with (path / name).open("ab") as file:
        file.truncate(1 << 40)  # no real bytes
    assert refusal(path, base).reason == "file_too_large"


def test_unreadable(base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(13, "Permission denied", WEIGHTS)

    path = good(base).write(tmp_path / "adapter")
    monkeypatch.setattr(folder, "look_at", fail)
    error = refusal(path, base)
    assert error.reason == "unreadable"
    assert WEIGHTS in error.message


def test_files_that_change_meanwhile(base: BaseModel, tmp_path: Path) -> None:
    path = good(base).write(tmp_path / "adapter")
    checked = check_folder(path, base)
    good(base, seed=1).write(tmp_path / "newer")
    (tmp_path / "newer" / WEIGHTS).replace(path / WEIGHTS)
    (tmp_path / "kept").mkdir()
    with pytest.raises(Refused) as caught:
        checked.write(tmp_path / "kept")
    assert caught.value.reason == "changed_while_read"


def test_no_vocabulary_is_needed(base: BaseModel, tmp_path: Path) -> None:
    assert embedding(base)[1:] == (32, 16)
    draft = good(base)
    draft.files["tokenizer.model"] = b"a sentencepiece model, which the base does not have"
    check_folder(draft.write(tmp_path / "adapter"), base)
