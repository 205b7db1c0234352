from __future__ import annotations

import pytest

from training.config import AnswerConfig
from training.metrics import accuracy, exact_match, json_match, json_valid, normalise


def test_exact_match_minds_all_but_outer_space() -> None:
    assert exact_match(" a b \n", ["a b"])
    assert exact_match("two", ["one", "two"])
    assert not exact_match("A b", ["a b"])


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ('{"a": 1}', True),
        (" [1] ", True),
        ('{"a": 1} and so on', False),
        ("{'a': 1}", False),
        ("NaN", False),
        ("", False),
    ],
)
def test_json_is_strict(text: str, valid: bool) -> None:
    assert json_valid(text) is valid


def test_json_match_compares_values() -> None:
    assert json_match('{"b": 2, "a": 1}', ['{"a":1,"b":2}'])
    assert not json_match('{"a": 1}', ['{"a": 2}'])
    assert not json_match("no", ["no"])


GSM8K = AnswerConfig(pattern=r"-?\d[\d,]*(?:\.\d+)?", which="last", remove=r"[,$]")


def test_the_last_number_of_a_chain_of_thought() -> None:
    assert accuracy("3 + 4 = 7, so 1,007 in all", ["6 + 1 = <<6+1=7>>\n#### 1007"], GSM8K)
    assert not accuracy("about seven", ["#### 7"], GSM8K)


def test_normalisation() -> None:
    assert normalise(" Positive. ", AnswerConfig()) == "positive"
    assert normalise("A B", AnswerConfig(ignore_case=False)) == "A B"
    assert normalise("x=1 x=2", AnswerConfig(pattern=r"x=(\d)", which="first")) == "1"
    assert normalise("none", AnswerConfig(pattern=r"\d")) is None
