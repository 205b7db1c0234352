"""Every error that a user can meet has exactly one exit code, and a message of one line."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

import adapters.errors
import server.errors
import training.errors
from deploy.exits import CODES, Exit, code_for, message_for

ROOTS = (adapters.errors.AdapterError, training.errors.TrainingError, server.errors.ServerError)
LAYERS = (adapters.errors.BaseProblem, adapters.errors.StoreProblem)  # never raised themselves


def tree(root: type[Exception]) -> Iterator[type[Exception]]:
    for child in root.__subclasses__():
        yield child
        yield from tree(child)


KINDS = [kind for root in ROOTS for kind in tree(root) if kind not in LAYERS]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_every_error_has_exactly_one_exit_code(kind: type[Exception]) -> None:
    error = kind.__new__(kind)
    code = code_for(error)
    assert code is not None
    assert code not in (Exit.OK, Exit.INTERNAL)
    lines = [parent for parent in kind.__mro__ if parent in CODES]
    assert lines[0] is kind or not kind.__bases__[1:], "one line of ancestors, so one nearest entry"


def test_the_roots_mean_nothing_by_themselves() -> None:
    """Else a new kind of error would get a code that nobody chose."""
    assert CODES.keys().isdisjoint({*ROOTS, *LAYERS, Exception})
    assert all(code_for(root.__new__(root)) is None for root in ROOTS)


def test_the_table_names_no_error_that_is_gone() -> None:
    assert set(CODES) <= set(KINDS)


def test_codes_are_distinct_and_fit_a_shell() -> None:
    assert len({int(code) for code in Exit}) == len(Exit)
    assert all(0 <= code <= 255 for code in Exit)


def test_a_full_disk_is_told_with_its_file_and_its_mend() -> None:
    error = OSError(errno.ENOSPC, "No space left on device", "/data/blob")
    assert code_for(error) == Exit.STORE
    assert message_for(error).startswith("/data/blob: No space left on device; free some space")


def test_a_message_of_several_lines_becomes_one() -> None:
    assert message_for(ValueError("one\n  two")) == "one two"
    assert message_for(ValueError()) == "ValueError"


def test_anything_else_is_a_defect() -> None:
    assert code_for(ZeroDivisionError()) is None
