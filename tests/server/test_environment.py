"""What the engine's environment is made of, and which vLLM flags are refused because they would do nothing."""

from __future__ import annotations

import os
from argparse import Namespace

import pytest

from server.engine.host import _refuse_ignored, set_environment
from server.errors import StartError


def test_our_settings_win_over_an_exported_value_and_preloads_are_joined(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ONEBASE_CPU_LORA", "grouped")
    monkeypatch.setenv("LD_PRELOAD", "/lib/theirs.so")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
    set_environment(
        {"ONEBASE_CPU_LORA": "stock", "LD_PRELOAD": "/lib/tcmalloc.so", "VLLM_LOGGING_LEVEL": "ERROR"}
    )
    assert os.environ["ONEBASE_CPU_LORA"] == "stock"
    assert os.environ["LD_PRELOAD"] == "/lib/theirs.so:/lib/tcmalloc.so"
    assert os.environ["VLLM_LOGGING_LEVEL"] == "DEBUG"
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in os.environ


@pytest.mark.parametrize(
    ("flag", "value", "mend"),
    [
        ("model_tag", "./my-base", "onebase serve MODEL"),
        ("ssl_certfile", "cert.pem", "proxy"),
        ("revision", "abc", "MODEL@REVISION"),
        ("lora_modules", ["a=b"], "adapters publish"),
        ("root_path", "/x", "proxy"),
    ],
)
def test_flags_without_effect_are_refused(flag: str, value: object, mend: str) -> None:
    with pytest.raises(StartError) as refused:
        _refuse_ignored(Namespace(**{flag: value}))
    assert mend in refused.value.message
    assert refused.value.param == flag


def test_flags_left_alone_are_taken_as_they_are() -> None:
    plain = Namespace(model_tag=None, ssl_certfile=None, lora_modules=None, root_path="", revision=None)
    before = vars(plain).copy()
    _refuse_ignored(plain)
    assert vars(plain) == before
