from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters.base import BaseModel, open_base
from tests.training.tiny import make_model
from training.config import LoraConfig
from training.errors import MergeRefused
from training.merge import merge
from training.model import attach, open_model
from training.result import write_adapter

IDS = torch.tensor([[5, 6, 7, 8, 9]])


def make_adapter(base: BaseModel, folder: Path, **settings: Any) -> Path:
    """An adapter with an effect: a fresh one's B is zero."""
    torch.manual_seed(1)
    model = attach(open_model(base.folder, torch.float32), LoraConfig(r=4, **settings), base)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "lora_embedding_A" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    write_adapter(model, base, {}, folder)
    return folder


def logits(folder: Path, adapter: Path | None = None) -> torch.Tensor:
    import peft

    model = open_model(folder, torch.float32)
    if adapter:
        model = peft.PeftModel.from_pretrained(model, str(adapter))
    with torch.no_grad():
        found: torch.Tensor = model.eval()(IDS).logits
    return found


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"use_dora": True}])
def test_merged_equals_adapter_and_base(base: BaseModel, tmp_path: Path, settings: dict[str, Any]) -> None:
    adapter = make_adapter(base, tmp_path / "adapter", **settings)
    merged = merge(base, adapter, tmp_path / "merged")
    expected = logits(base.folder, adapter)
    assert torch.allclose(logits(merged), expected, atol=1e-5)
    assert not torch.allclose(logits(base.folder), expected, atol=1e-2)


def test_the_folder_is_a_whole_model(base: BaseModel, tmp_path: Path) -> None:
    merged = merge(base, make_adapter(base, tmp_path / "adapter"), tmp_path / "merged")
    names = {path.name for path in merged.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= names
    assert (merged / "tokenizer.json").read_bytes() == (base.folder / "tokenizer.json").read_bytes()
    again = open_base(str(merged), home=tmp_path / "home")
    assert again.fingerprint.tokenizer == base.fingerprint.tokenizer
    assert again.fingerprint.chat_template == base.fingerprint.chat_template
    assert again.fingerprint.weights != base.fingerprint.weights
    assert not list(tmp_path.glob(".*writing"))


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")  # the unmerged one, which is compared
def test_a_tied_head_is_untied_where_it_is_touched(base: BaseModel, tmp_path: Path) -> None:
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj", "lm_head"])
    merged = merge(base, adapter, tmp_path / "merged")
    assert torch.allclose(logits(merged), logits(base.folder, adapter), atol=1e-5)
    assert json.loads((merged / "config.json").read_text())["tie_word_embeddings"] is False


def test_refusals_leave_nothing(base: BaseModel, tmp_path: Path) -> None:
    adapter = make_adapter(base, tmp_path / "adapter")
    output = tmp_path / "merged"
    with pytest.raises(MergeRefused, match="is not a peft adapter"):
        merge(base, tmp_path / "nothing", output)

    make_model(tmp_path / "other", seed=1)
    other = open_base(str(tmp_path / "other"), home=tmp_path / "home")
    with pytest.raises(MergeRefused, match="was trained on a base with other weights"):
        merge(other, adapter, output)

    wide = shutil.copytree(adapter, tmp_path / "wide")
    tensors = load_file(wide / "adapter_model.safetensors")
    name = next(iter(tensors))
    save_file({**tensors, name: torch.zeros(3, 3)}, wide / "adapter_model.safetensors")
    with pytest.raises(MergeRefused, match="does not fit"):
        merge(base, wide, output)

    foreign = shutil.copytree(adapter, tmp_path / "foreign")
    moved = {key.replace("layers.1", "layers.7"): value for key, value in tensors.items()}
    save_file(moved, foreign / "adapter_model.safetensors")
    with pytest.raises(MergeRefused, match=r"the tensor .* is this the adapter's base"):
        merge(base, foreign, output)
    assert not output.exists()

    output.mkdir()
    (output / "mine.txt").write_text("x")
    with pytest.raises(MergeRefused, match="is not empty"):
        merge(base, adapter, output)
