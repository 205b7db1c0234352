from __future__ import annotations

import math

import pytest

from training.agreement import Expected, judge

END = 9
REFERENCE = Expected([1, 2, 3, END], [-0.1, -0.2, -0.3, -0.4], [5.0, 4.0, 3.0, 2.0])


def test_equal_with_and_without_the_end_token() -> None:
    for tokens in ([1, 2, 3, END], [1, 2, 3]):
        verdict = judge(REFERENCE, tokens, [-0.1, -0.2, -0.3, -0.4][: len(tokens)], end=[END])
        assert verdict.equal
        assert verdict.compared >= 3


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        ([1, 7, 3], "position 1: token 7, the reference has 2 (ahead by 4)"),
        ([1, 2], "position 2: the answer ended, the reference goes on with token 3"),
        ([1, 2, 3, END, 5], "position 4: the answer goes on after the end"),
    ],
)
def test_the_first_difference_is_named(tokens: list[int], says: str) -> None:
    verdict = judge(REFERENCE, tokens, end=[END])
    assert verdict.mismatch == says
    assert not verdict.equal


def test_log_probabilities_within_a_tolerance() -> None:
    close, far = [-0.1, -0.2009, -0.3], [-0.1, -0.202, -0.3]
    assert judge(REFERENCE, [1, 2, 3], close, end=[END]).equal
    assert judge(REFERENCE, [1, 2, 3], far, end=[END]).mismatch == (
        "position 1: log-probability -0.202000, the reference has -0.200000"
    )
    assert not judge(REFERENCE, [1, 2, 3], [math.nan, -0.2, -0.3], end=[END]).equal


def test_nothing_is_said_where_the_reference_is_undecided() -> None:
    undecided = Expected([1, 2, 3], [-0.1, -0.2, -0.3], [5.0, 0.0009, 3.0])
    verdict = judge(undecided, [1, 8, 8, 8], [-0.1, -3.0, -3.0, -3.0])
    assert verdict.equal
    assert verdict.compared == 1


def test_a_reference_cut_by_its_length_says_nothing_of_what_follows() -> None:
    assert judge(Expected([1, 2], [-0.1, -0.2], [5.0, 5.0]), [1, 2, 3], end=[END]).equal
