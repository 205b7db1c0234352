from __future__ import annotations

from collections.abc import Iterator

from training import errors
from training.errors import Place, TrainingError


def tree(root: type[TrainingError]) -> Iterator[type[TrainingError]]:
    yield root
    for below in root.__subclasses__():
        yield from tree(below)


def test_every_error_has_a_code_of_its_own_and_is_drawn() -> None:
    found = list(tree(TrainingError))
    codes = [error.code for error in found]
    assert len(set(codes)) == len(codes)
    for error in found:
        assert error.__name__ in (errors.__doc__ or "")


def test_places() -> None:
    assert str(Place("a.jsonl", 3)) == "a.jsonl:3"
    assert str(Place("a.json", record="train[1]")) == "a.json train[1]"
    assert str(Place("a")) == "a"
