"""Do two greedy answers agree? The project's one definition of equality, as a pure function.

Equal up to the first position where the reference's two best logits differ by less than a margin; before it
exact, with log-probabilities within a tolerance. Behind such a position either continuation is right, so
nothing is said.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

MARGIN = 1e-3
TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Expected:
    """A reference answer: its tokens, their log-probabilities, and at each the lead of the best logit."""

    tokens: Sequence[int]
    logprobs: Sequence[float]
    gaps: Sequence[float]


@dataclass(frozen=True, slots=True)
class Verdict:
    """`compared` positions were held against each other; `mismatch` says what the first difference is, or
    None.
    """

    compared: int
    mismatch: str | None = None

    @property
    def equal(self) -> bool:
        return self.mismatch is None


def judge(
    reference: Expected,
    tokens: Sequence[int],
    logprobs: Sequence[float] | None = None,
    *,
    end: Collection[int] = (),
    margin: float = MARGIN,
    tolerance: float = TOLERANCE,
) -> Verdict:
    """Hold an answer against the reference. `end` tokens may close the reference and be left out of the
    answer.
    """
    for at, wanted in enumerate(reference.tokens):
        if reference.gaps[at] < margin:
            return Verdict(at)
        if at >= len(tokens):
            if wanted in end:
                return Verdict(at)
            return Verdict(at, f"position {at}: the answer ended, the reference goes on with token {wanted}")
        if tokens[at] != wanted:
            return Verdict(
                at,
                f"position {at}: token {tokens[at]}, the reference has {wanted} "
                f"(ahead by {reference.gaps[at]:.4g})",
            )
        if logprobs is not None:
            difference = abs(logprobs[at] - reference.logprobs[at])
            if not difference <= tolerance:  # also where one of them is not a number
                return Verdict(
                    at,
                    f"position {at}: log-probability {logprobs[at]:.6f}, the reference has "
                    f"{reference.logprobs[at]:.6f}",
                )
    if reference.tokens and reference.tokens[-1] in end and len(tokens) > len(reference.tokens):
        return Verdict(
            len(reference.tokens), f"position {len(reference.tokens)}: the answer goes on after the end"
        )
    return Verdict(len(reference.tokens))
