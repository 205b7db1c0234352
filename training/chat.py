"""Text to tokens, with the completion found exactly: which tokens of a conversation the assistant wrote.

Works for any chat template, also one without a `{% generation %}` mark: the text up to a turn is rendered
with the generation prompt, the text with the turn without it, and the difference is what the model has to
learn. Token boundaries are those that inference sees, where the prompt is tokenised alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from training.errors import ModelProblem

Message = dict[str, Any]


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that is used here."""

    eos_token_id: int | None

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any: ...

    def encode(self, text: str, **options: Any) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Tokens:
    """`supervised[i]` says that token i is one that the model must learn to write."""

    ids: list[int]
    supervised: list[bool]


def encode_chat(
    tokenizer: Tokenizer, messages: Sequence[Message], tools: list[Any] | None = None
) -> list[Tokens]:
    """One sequence for the conversation, or one for each assistant turn where the template rewrites history.

    (Some templates drop earlier reasoning, so that no single sequence shows each turn as inference would.)
    """
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    whole = _Sequence(tokenizer)
    for turn in turns:
        before, after = _around(tokenizer, messages, turn, tools)
        if not before.startswith(whole.text):
            return [_single(tokenizer, *_around(tokenizer, messages, turn, tools)) for turn in turns]
        whole.add(before, supervised=False)
        whole.add(after, supervised=True)
    return [whole.tokens()]


def encode_prompt(
    tokenizer: Tokenizer, messages: Sequence[Message], tools: list[Any] | None = None
) -> list[int]:
    """What inference feeds the model: the messages and the generation prompt."""
    return _encode(tokenizer, _render(tokenizer, messages, tools, ask=True))


def encode_plain(tokenizer: Tokenizer, prompt: str, completion: str) -> Tokens:
    """A prompt and its completion without a template; the end-of-text token closes the completion."""
    prompt_ids = plain_prompt(tokenizer, prompt)
    completion_ids = _encode(tokenizer, completion)
    if tokenizer.eos_token_id is not None:
        completion_ids = [*completion_ids, tokenizer.eos_token_id]
    supervised = [False] * len(prompt_ids) + [True] * len(completion_ids)
    return Tokens(prompt_ids + completion_ids, supervised)


def plain_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """With the tokenizer's own begin token, without an end token that some tokenizers append."""
    ids = list(tokenizer.encode(prompt, add_special_tokens=True))
    if ids and ids[-1] == tokenizer.eos_token_id:
        ids.pop()
    return ids


class _Sequence:
    """Tokens that grow with the text, keeping the boundaries at which inference would have cut it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.text = ""
        self.ids: list[int] = []
        self.supervised: list[bool] = []

    def add(self, text: str, *, supervised: bool) -> None:
        """Extend to `text`, which begins with the text so far."""
        ids = _encode(self.tokenizer, text)
        if (
            ids[: len(self.ids)] != self.ids
        ):  # a token reaches over the boundary: cut there, as inference does
            ids = self.ids + _encode(self.tokenizer, text[len(self.text) :])
        new = ids[len(self.ids) :]
        self.supervised += _until_end(new, self.tokenizer.eos_token_id) if supervised else [False] * len(new)
        self.text, self.ids = text, ids

    def tokens(self) -> Tokens:
        """Without what the template puts behind the last turn, since nothing follows it."""
        end = max((i + 1 for i, wanted in enumerate(self.supervised) if wanted), default=0)
        return Tokens(self.ids[:end], self.supervised[:end])


def _single(tokenizer: Tokenizer, before: str, after: str) -> Tokens:
    sequence = _Sequence(tokenizer)
    sequence.add(before, supervised=False)
    sequence.add(after, supervised=True)
    return sequence.tokens()


def _until_end(ids: list[int], eos: int | None) -> list[bool]:
    """Supervise up to the end token. Generation stops there, so the line feed behind it is never written."""
    if eos not in ids:
        return [True] * len(ids)
    last = len(ids) - 1 - ids[::-1].index(eos)
    return [index <= last for index in range(len(ids))]


def _around(
    tokenizer: Tokenizer, messages: Sequence[Message], turn: int, tools: list[Any] | None
) -> tuple[str, str]:
    """The text before an assistant turn, as inference sees it, and the text with it."""
    after = _render(tokenizer, messages[: turn + 1], tools, ask=False)
    before = _render(tokenizer, messages[:turn], tools, ask=True)
    if not after.startswith(before):
        # The generation prompt holds what this turn does not repeat (an empty block of reasoning, say).
        without = _render(tokenizer, messages[:turn], tools, ask=False)
        if not (before.startswith(without) and after.startswith(without)):
            raise ModelProblem(
                "the chat template renders a conversation so that the assistant's turn cannot be told from "
                "what comes before it; use data.format: prompt-completion with data.wrap: plain",
                param="data.format",
            )
        after = before + _common_tail(after, without, before)
    return before, after


def _common_tail(after: str, without: str, before: str) -> str:
    """The turn's own text where the template opens it otherwise than its generation prompt does."""
    opening = before[len(without) :]
    turn = after[len(without) :]
    shared = 0
    while shared < min(len(opening), len(turn)) and opening[shared] == turn[shared]:
        shared += 1
    return turn[shared:]


def _render(tokenizer: Tokenizer, messages: Sequence[Message], tools: list[Any] | None, *, ask: bool) -> str:
    options: dict[str, Any] = {"tools": tools} if tools else {}
    text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=ask, **options)
    return str(text)


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))
