from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.training.tiny import Write
from training.config_file import check_config
from training.data import Data, load_data
from training.errors import DataError, EmptyData, MalformedData, MissingField, NoChatTemplate, SampleTooLong

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


@pytest.fixture
def load(write: Write, tokenizer: Any) -> Any:
    def load_rows(rows: list[dict[str, Any]], context: int = 128, **data: Any) -> Data:
        path = write("rows.jsonl", rows)
        values = {"model": "tiny", "name": "t", "data": {"train": {"file": str(path)}, **data}}
        return load_data(check_config(values), tokenizer, data_root=None, base_name="tiny", context=context)

    return load_rows


def text(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids))


def test_chat_rows(load: Any, tokenizer: Any) -> None:
    (sample,) = load([{"messages": [{"role": "system", "content": "be kind"}, *CHAT]}]).train
    assert text(tokenizer, sample.prompt_ids).endswith("<|start|>user\nhi<|end|>\n<|start|>assistant\n")
    assert sample.answers == ("hello",)
    assert sample.ids[: len(sample.prompt_ids)] == sample.prompt_ids


def test_what_follows_the_last_assistant_turn_is_left_out(load: Any, tokenizer: Any) -> None:
    (sample,) = load([{"messages": [*CHAT, {"role": "user", "content": "unanswered"}]}]).train
    assert "unanswered" not in text(tokenizer, sample.ids)


def test_templates_fill_fields(load: Any, tokenizer: Any) -> None:
    rows = [{"Definition": ["Add."], "input": {"a": 1}, "q": 2, "output": ["3", "three"]}]
    (sample,) = load(
        rows,
        format="prompt-completion",
        system="{Definition}",
        prompt="{{json}} {q}",
        completion="{output}",
    ).train
    assert "system\nAdd.<|end|>" in text(tokenizer, sample.prompt_ids)
    assert "user\n{json} 2<|end|>" in text(tokenizer, sample.prompt_ids)
    assert sample.answers == ("3", "three")
    assert text(tokenizer, sample.ids).endswith("assistant\n3<|end|>")


def test_plain_rows_are_not_wrapped(load: Any, tokenizer: Any) -> None:
    rows = [{"prompt": "a", "completion": "b"}]
    (sample,) = load(rows, format="prompt-completion", wrap="plain", system="s").train
    assert text(tokenizer, sample.ids) == "s\n\nab<|end|>"


@pytest.mark.parametrize(
    ("rows", "data", "says"),
    [
        ([{"messages": CHAT}, {"text": "x"}], {}, "rows.jsonl:2: the row has no field 'messages', which data.messages"),
        ([{"prompt": "x"}], {"format": "prompt-completion"}, "rows.jsonl:1: the row has no field 'completion'"),
        ([{"messages": "hi"}], {}, "must be a list of messages"),
        ([{"messages": []}], {}, "must be a list of messages"),
        ([{"messages": [{"content": "x"}]}], {}, "messages[0] must be an object with 'role'"),
        ([{"messages": [{"role": "bot", "content": "x"}]}], {}, "messages[0].role is 'bot'"),
        ([{"messages": [{"role": "user", "content": None}]}], {}, "messages[0].content must be text"),
        ([{"messages": CHAT[:1]}], {}, "needs an assistant's turn"),
        ([{"messages": CHAT[1:]}], {}, "with something before it"),
        ([{"messages": [CHAT[0], {"role": "assistant", "content": " "}]}], {}, "messages[1].content is empty"),
        ([{"prompt": "x", "completion": ""}], {"format": "prompt-completion"}, "there is nothing to learn"),
        ([{"prompt": None, "completion": "x"}], {"format": "prompt-completion"}, "the field 'prompt' is empty"),
        ([{"prompt": {}, "completion": "x"}], {"format": "prompt-completion"}, "the field 'prompt' is a dict"),
    ],
)  # fmt: skip
def test_bad_rows_name_file_and_line(load: Any, rows: Any, data: dict[str, Any], says: str) -> None:
    with pytest.raises((MalformedData, MissingField)) as caught:
        load(rows, **data)
    assert says in str(caught.value)
    assert f"rows.jsonl:{len(rows)}" in str(caught.value)


LONG = {"messages": [CHAT[0], {"role": "assistant", "content": "x" * 200}]}


def test_too_long_is_refused_with_place_and_length(load: Any) -> None:
    with pytest.raises(SampleTooLong) as caught:
        load([{"messages": CHAT}, LONG])
    assert caught.value.limit == 128
    assert f"rows.jsonl:2: the sample has {caught.value.length} tokens, the limit is 128" in str(caught.value)


def test_too_long_can_be_dropped_or_cut(load: Any) -> None:
    assert len(load([{"messages": CHAT}, LONG], too_long="drop").train) == 1
    cut = load([{"messages": CHAT}, LONG], too_long="truncate").train
    assert [len(sample.ids) for sample in cut][1] == 128
    with pytest.raises(EmptyData, match="none of its 1 rows is left"):
        load([LONG], too_long="drop")


def test_truncation_that_leaves_nothing_to_learn_drops(load: Any) -> None:
    with pytest.raises(EmptyData):
        load([{"messages": CHAT}], too_long="truncate", max_length=8)


def test_chat_without_a_template(load: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", None)
    with pytest.raises(NoChatTemplate, match="'tiny' has no chat template"):
        load([{"messages": CHAT}])
    rows = [{"prompt": "a", "completion": "b"}]
    assert len(load(rows, format="prompt-completion").train) == 1
    with pytest.raises(NoChatTemplate):
        load(rows, format="prompt-completion", wrap="chat")


def test_a_share_is_held_out_the_same_way_each_time(load: Any) -> None:
    rows = [{"prompt": str(i), "completion": "x"} for i in range(10)]
    first = load(rows, format="prompt-completion", eval_share=0.2)
    second = load(rows, format="prompt-completion", eval_share=0.2)
    assert (len(first.train), len(first.held_out)) == (8, 2)
    assert [s.ids for s in first.held_out] == [s.ids for s in second.held_out]
    assert not {tuple(s.ids) for s in first.train} & {tuple(s.ids) for s in first.held_out}
    with pytest.raises(EmptyData, match="too few to hold out"):
        load(rows[:1], format="prompt-completion", eval_share=0.2)


def test_lineage_names_no_path_of_this_machine(load: Any, tmp_path: Path) -> None:
    lineage = load([{"messages": CHAT}]).lineage
    assert lineage["train"]["source"] == "rows.jsonl"
    assert lineage["train"]["sha256"].startswith("sha256:")
    assert str(tmp_path) not in str(lineage)


def test_bad_data_is_one_error_tree() -> None:
    assert issubclass(MissingField, DataError)
    assert issubclass(SampleTooLong, DataError)
