from __future__ import annotations

import inspect
import pickle
import re

import pytest

from adapters import errors
from adapters.errors import AdapterError

CLASSES = [one for _, one in inspect.getmembers(errors, inspect.isclass) if issubclass(one, AdapterError)]


def test_the_tree_at_the_top_names_every_class() -> None:
    drawn = set(re.findall(r"[├└]── (\w+)", errors.__doc__ or ""))
    assert drawn == {one.__name__ for one in CLASSES} - {"AdapterError"}


@pytest.mark.parametrize("kind", CLASSES)
def test_codes_are_snake_case(kind: type[AdapterError]) -> None:
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", kind.code)


@pytest.mark.parametrize(
    "error",
    [
        errors.UnknownAdapter("a", ["b"]),
        errors.UnknownVersion("a", 3, list(range(1, 20))),
        errors.UnknownAlias("a", "x", []),
        errors.Retired("a", None, "bad answers"),
        errors.Refused("wrong_shape", "message", param="tensor"),
        errors.StoreCorrupt("blobs/x", "is damaged", "Mend it."),
        errors.BadReference("?", "why"),
        errors.Conflict("taken", code="reserved_name", param="name"),
    ],
)
def test_errors_cross_a_process_boundary(error: AdapterError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (again.message, again.code, again.param) == (error.message, error.code, error.param)
    assert again.__dict__ == error.__dict__


def test_an_unknown_name_offers_the_nearest() -> None:
    error = errors.UnknownAdapter("suport", ["support"])
    assert error.message == "There is no adapter named `suport`. Did you mean `support`?"
    assert error.nearest == ["support"]


def test_long_lists_of_versions_are_cut() -> None:
    error = errors.UnknownVersion("a", 99, range(1, 40))
    assert "..., 32, 33" in error.message
