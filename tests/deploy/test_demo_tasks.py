from __future__ import annotations

import json
import random
from datetime import date
from pathlib import Path

import pytest

from deploy.demo.phrases import TICKETS
from deploy.demo.tasks import TASKS, examples, ordinal, spoken, spoken_year, write_task


def rows(path: Path) -> list[tuple[str, str]]:
    found = [json.loads(line)["messages"] for line in path.read_text().splitlines()]
    return [(messages[1]["content"], messages[2]["content"]) for messages in found]


@pytest.mark.parametrize("name", sorted(TASKS))
def test_held_out_sentences_are_never_trained_on(name: str, tmp_path: Path) -> None:
    write_task(TASKS[name], tmp_path, train=200, held_out=50)
    train, held_out = rows(tmp_path / name / "train.jsonl"), rows(tmp_path / name / "eval.jsonl")
    assert (len(train), len(held_out)) == (200, 50)
    prompts = [prompt for prompt, _ in train + held_out]
    assert len(set(prompts)) == 250
    assert not any("{" in prompt for prompt in prompts)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_the_same_seed_makes_the_same_sentences(name: str) -> None:
    assert list(examples(TASKS[name], 20, seed=3)) == list(examples(TASKS[name], 20, seed=3))
    assert list(examples(TASKS[name], 20, seed=3)) != list(examples(TASKS[name], 20, seed=4))


def test_home_answers_are_strict_json_of_one_shape() -> None:
    for example in examples(TASKS["home"], 100, seed=0):
        answer = json.loads(example.completion)
        assert list(answer) == ["device", "room", "action", "value"]
        said = answer["value"] is not None
        assert said == any(word in example.prompt for word in ("percent", "degrees", "volume"))
        assert answer["room"].replace("_", " ") in example.prompt


def test_ticket_labels_are_desks() -> None:
    assert {example.completion for example in examples(TASKS["tickets"], 200, seed=0)} == set(TICKETS)


def test_dates_are_dates() -> None:
    for example in examples(TASKS["dates"], 100, seed=0):
        assert date.fromisoformat(example.completion).isoformat() == example.completion


@pytest.mark.parametrize(
    ("number", "cardinal", "nth"),
    [
        (1, "one", "first"),
        (12, "twelve", "twelfth"),
        (15, "fifteen", "fifteenth"),
        (20, "twenty", "twentieth"),
        (31, "thirty one", "thirty first"),
    ],
)
def test_numbers_in_words(number: int, cardinal: str, nth: str) -> None:
    assert spoken(number) == cardinal
    assert ordinal(number) == nth


@pytest.mark.parametrize(
    ("year", "words"),
    [(1984, "nineteen eighty four"), (1905, "nineteen oh five"), (1900, "nineteen hundred"),
     (2000, "two thousand"), (2006, "two thousand and six")],
)  # fmt: skip
def test_years_as_people_say_them(year: int, words: str) -> None:
    assert spoken_year(year, random.Random(0)) == words
