"""The embedded base, really: from the GGUF file of the PyPI wheel to a folder that transformers reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adapters import embedded
from adapters.base import EMBEDDED, BaseModel, open_base


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def base(home: Path) -> BaseModel:
    return open_base(EMBEDDED, home=home)


def weights(base: BaseModel) -> Path:
    return base.folder / "model.safetensors"


def test_converted_once(base: BaseModel, home: Path) -> None:
    made = weights(base).stat()
    assert open_base(EMBEDDED, home=home) == base
    assert weights(base).stat().st_mtime_ns == made.st_mtime_ns
    assert base.fingerprint.architecture == "LlamaForCausalLM"
    assert base.modules["model.layers.29.mlp.down_proj"] == (576, 1536)
    assert base.modules["lm_head"] == (49152, 576)
    assert len(base.modules) == 30 * 7 + 2


def test_the_folder_is_sound(base: BaseModel) -> None:
    config = json.loads((base.folder / "config.json").read_text())
    assert config["dtype"] == "float32"
    assert not {"quantization_config", "_model_name_or_path", "_name_or_path"} & set(config)
    generation = json.loads((base.folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == config["eos_token_id"] == 2


def test_the_tokenizer_is_the_original(base: BaseModel) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base.folder)
    text = "Room 123, 4.5 m², naïve 中文\n"
    ids = tokenizer(text).input_ids
    assert ids[0] != tokenizer.bos_token_id
    assert tokenizer.decode(ids) == text
    pieces = tokenizer.convert_ids_to_tokens(tokenizer("x 123").input_ids)
    assert pieces == ["x", "Ġ", "1", "2", "3"]  # every digit on its own
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.eos_token == "<|im_end|>"


def test_it_answers(base: BaseModel) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base.folder)
    model = AutoModelForCausalLM.from_pretrained(base.folder)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt")
    with torch.inference_mode():
        answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    text = tokenizer.decode(answer[0][prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert "Paris" in text


def test_a_corrupt_file_is_made_again(base: BaseModel, home: Path) -> None:
    data = bytearray(weights(base).read_bytes())
    data[len(data) // 2] ^= 1
    weights(base).write_bytes(data)
    assert open_base(EMBEDDED, home=home) == base
    assert weights(base).read_bytes() != data


def test_a_half_done_folder_is_made_again(base: BaseModel, home: Path) -> None:
    (base.folder / ".onebase.json").unlink()
    (base.folder / "tokenizer.json").unlink()
    with weights(base).open("r+b") as file:
        file.truncate(1000)
    assert open_base(EMBEDDED, home=home) == base


def test_the_pinned_file(base: BaseModel, home: Path) -> None:
    """Whether from the installed distribution or a download: the one file that the pin names."""
    models = home / "cache" / "models"
    source = embedded.installed() or embedded._cached(models)
    assert source is not None
    assert source.stat().st_size == 98_362_432
