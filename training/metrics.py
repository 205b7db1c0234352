"""What an answer is worth: text against text. Knows nothing of models."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from training.config import AnswerConfig


def exact_match(text: str, answers: Sequence[str]) -> bool:
    """The very text, white space at the ends aside."""
    return text.strip() in {answer.strip() for answer in answers}


def json_valid(text: str) -> bool:
    return _parsed(text) is not _NOT_JSON


def json_match(text: str, answers: Sequence[str]) -> bool:
    """The same JSON value: order of keys and white space do not count."""
    value = _parsed(text)
    return value is not _NOT_JSON and any(value == _parsed(answer) for answer in answers)


def accuracy(text: str, answers: Sequence[str], config: AnswerConfig) -> bool:
    """The same answer after it was cut out of the text and normalised, on both sides alike."""
    found = normalise(text, config)
    return found is not None and any(found == normalise(answer, config) for answer in answers)


def normalise(text: str, config: AnswerConfig) -> str | None:
    """The answer in a text, or None where the pattern finds none."""
    found = text
    if config.pattern is not None:
        matches = list(re.finditer(config.pattern, text))
        if not matches:
            return None
        match = matches[0] if config.which == "first" else matches[-1]
        found = match.group(1) if match.re.groups else match.group(0)
    if config.remove is not None:
        found = re.sub(config.remove, "", found)
    found = " ".join(found.split()).rstrip(".")
    return found.casefold() if config.ignore_case else found


_NOT_JSON = object()


def _parsed(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except ValueError:
        return _NOT_JSON


def _no_constant(name: str) -> None:
    """Python reads NaN and Infinity; JSON has neither."""
    raise ValueError(name)
