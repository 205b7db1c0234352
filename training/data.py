"""Rows to samples: templates filled, conversations checked, tokens cut to length. Every complaint names file
and line.

A sample is what training needs (tokens, which of them are supervised) and what evaluation needs (the prompt
as inference sees it, the answers that count as right).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.chat import Message, Tokenizer, Tokens, encode_chat, encode_plain, encode_prompt, plain_prompt
from training.config import DataConfig, TrainConfig
from training.errors import EmptyData, MalformedData, MissingField, NoChatTemplate, Place, SampleTooLong
from training.records import Row, Rows, digest_rows, read_rows

_FIELD = re.compile(r"\{\{|\}\}|\{([A-Za-z_][\w .-]*)\}")
_ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Sample:
    """`prompt_ids` is empty where an earlier turn of a conversation stands alone: its last turn is what is
    asked.
    """

    ids: list[int]
    supervised: list[bool]
    prompt_ids: list[int]
    answers: tuple[str, ...]
    place: Place


@dataclass(frozen=True, slots=True)
class Data:
    train: list[Sample]
    held_out: list[Sample]
    lineage: dict[str, Any] = field(default_factory=dict)


def load_data(
    config: TrainConfig, tokenizer: Tokenizer, *, data_root: Path | None, base_name: str, context: int
) -> Data:
    """Both sets, checked to the last row before anything is trained."""
    data = config.data
    chat = _wants_chat(data, tokenizer, base_name)
    limit = min(data.max_length or context, context)
    train = read_rows(data.train, param="data.train", data_root=data_root, config_folder=config.folder)
    held_out: Rows | None = None
    if data.eval is not None:
        held_out = read_rows(data.eval, param="data.eval", data_root=data_root, config_folder=config.folder)
    elif data.eval_share:
        train, held_out = _split(train, data.eval_share, config.optimiser.seed)
    reader = _Reader(data, tokenizer, chat, limit)
    train_samples = reader.samples(train, "data.train")
    held_out_samples = reader.samples(held_out, "data.eval") if held_out else []
    lineage = {"train": {**train.lineage(), "samples": len(train_samples)}}
    if held_out:
        lineage["eval"] = {**held_out.lineage(), "samples": len(held_out_samples)}
    return Data(train_samples, held_out_samples, lineage)


def _wants_chat(data: DataConfig, tokenizer: Tokenizer, base_name: str) -> bool:
    has_template = bool(getattr(tokenizer, "chat_template", None))
    wanted = data.format == "chat" or data.wrap == "chat"
    if wanted and not has_template:
        raise NoChatTemplate(base_name)
    return wanted or (data.wrap is None and has_template)


def _split(rows: Rows, share: float, seed: int) -> tuple[Rows, Rows]:
    order = list(range(len(rows.rows)))
    random.Random(seed).shuffle(order)
    count = max(1, round(len(order) * share))
    if count >= len(order):
        raise EmptyData(
            f"{rows.source}: {len(order)} rows are too few to hold out a share of {share}; add rows or name "
            "a held-out file in data.eval",
            param="data.eval_share",
        )
    held, kept = sorted(order[:count]), sorted(order[count:])
    return _pick(rows, kept), _pick(rows, held)


def _pick(rows: Rows, indices: list[int]) -> Rows:
    chosen = [rows.rows[index] for index in indices]
    return Rows(chosen, rows.source, digest_rows(chosen))


class _Reader:
    """One way of reading rows: the templates, the tokenizer, and the bound on length."""

    def __init__(self, data: DataConfig, tokenizer: Tokenizer, chat: bool, limit: int) -> None:
        self.data = data
        self.tokenizer = tokenizer
        self.chat = chat
        self.limit = limit

    def samples(self, rows: Rows, param: str) -> list[Sample]:
        made = [sample for row in rows.rows for sample in self._fitting(row)]
        if not made:
            raise EmptyData(
                f"{rows.source}: none of its {len(rows.rows)} rows is left after data.too_long: "
                f"{self.data.too_long} at {self.limit} tokens; raise data.max_length or shorten the data",
                param=param,
            )
        return made

    def _fitting(self, row: Row) -> Iterator[Sample]:
        for sample in self._read(row):
            if len(sample.ids) <= self.limit:
                yield sample
            elif self.data.too_long == "error":
                raise SampleTooLong(len(sample.ids), self.limit, place=row.place)
            elif self.data.too_long == "truncate" and any(sample.supervised[: self.limit]):
                yield Sample(
                    sample.ids[: self.limit],
                    sample.supervised[: self.limit],
                    sample.prompt_ids,
                    sample.answers,
                    row.place,
                )

    def _read(self, row: Row) -> Iterator[Sample]:
        if self.data.format == "chat":
            messages = _conversation(row, self.data.messages)
            yield from self._from_chat(row, messages, (str(messages[-1].get("content") or ""),))
            return
        prompt = _fill(self.data.prompt, row, "data.prompt")
        answers = _answers(self.data.completion, row)
        system = _fill(self.data.system, row, "data.system") if self.data.system else None
        if self.chat:
            opening = [{"role": "system", "content": system}] if system else []
            turn = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answers[0]}]
            yield from self._from_chat(row, [*opening, *turn], answers)
            return
        if system:
            prompt = f"{system}\n\n{prompt}"
        tokens = encode_plain(self.tokenizer, prompt, answers[0])
        yield Sample(tokens.ids, tokens.supervised, plain_prompt(self.tokenizer, prompt), answers, row.place)

    def _from_chat(self, row: Row, messages: list[Message], answers: tuple[str, ...]) -> Iterator[Sample]:
        tools = row.fields.get("tools") or None
        prompt = encode_prompt(self.tokenizer, messages[:-1], tools)
        sequences = encode_chat(self.tokenizer, messages, tools)
        for tokens in sequences[:-1]:
            yield _sample(tokens, [], answers, row.place)
        yield _sample(sequences[-1], prompt, answers, row.place)


def _sample(tokens: Tokens, prompt: list[int], answers: tuple[str, ...], place: Place) -> Sample:
    if not any(tokens.supervised):
        raise MalformedData("the assistant's text has no tokens, there is nothing to learn", place=place)
    return Sample(tokens.ids, tokens.supervised, prompt, answers, place)


def _conversation(row: Row, key: str) -> list[Message]:
    """The messages of a row, ending with the assistant's last turn."""
    if key not in row.fields:
        raise MissingField(key, sorted(row.fields), place=row.place, param="data.messages")
    messages = row.fields[key]
    if not isinstance(messages, list) or not messages:
        raise MalformedData(f"{key!r} must be a list of messages", place=row.place, param="data.messages")
    for number, message in enumerate(messages):
        _check_message(message, f"{key}[{number}]", row.place)
    last = max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=None)
    if not last:  # none, or one with nothing before it
        raise MalformedData(
            f"{key!r} needs an assistant's turn to learn, with something before it", place=row.place
        )
    return messages[: last + 1]


def _check_message(message: Any, name: str, place: Place) -> None:
    if not isinstance(message, dict) or "role" not in message:
        raise MalformedData(f"{name} must be an object with 'role' and 'content'", place=place)
    if message["role"] not in _ROLES:
        raise MalformedData(
            f"{name}.role is {message['role']!r}; use one of {', '.join(_ROLES)}", place=place
        )
    calls = message["role"] == "assistant" and message.get("tool_calls")
    if not calls and not isinstance(message.get("content"), str):
        raise MalformedData(f"{name}.content must be text", place=place)
    if message["role"] == "assistant" and not calls and not message["content"].strip():
        raise MalformedData(f"{name}.content is empty, there is nothing to learn", place=place)


def _answers(template: str, row: Row) -> tuple[str, ...]:
    """The filled completion; a template of one field with a list in it gives every answer that is right."""
    match = _FIELD.fullmatch(template.strip())
    value = row.fields.get(match.group(1)) if match and match.group(1) else None
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        answers = tuple(value)
    else:
        answers = (_fill(template, row, "data.completion"),)
    if not answers[0].strip():
        raise MalformedData(
            f"the completion {template!r} is empty, there is nothing to learn", place=row.place
        )
    return answers


def _fill(template: str, row: Row, param: str) -> str:
    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name is None:
            return match.group(0)[0]  # a doubled brace stands for one
        if name not in row.fields:
            raise MissingField(name, sorted(row.fields), place=row.place, param=param)
        found = row.fields[name]
        if isinstance(found, list) and len(found) == 1:
            found = found[0]
        if found is None or isinstance(found, list | dict):
            kind = "empty" if found is None else f"a {type(found).__name__}"
            raise MalformedData(
                f"the field {name!r} is {kind}, {param} needs text", place=row.place, param=param
            )
        return str(found)

    return _FIELD.sub(value, template)
