from __future__ import annotations

from typing import Any

import pytest

from training.chat import Tokens, encode_chat, encode_plain, encode_prompt
from training.errors import ModelProblem

ASK = {"role": "user", "content": "hello"}
REPLY = {"role": "assistant", "content": "world"}
AGAIN = {"role": "user", "content": "more"}
LAST = {"role": "assistant", "content": "done"}


def learned(tokenizer: Any, tokens: Tokens) -> str:
    wanted = [token for token, on in zip(tokens.ids, tokens.supervised, strict=True) if on]
    return str(tokenizer.decode(wanted))


def with_template(tokenizer: Any, template: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(tokenizer, "chat_template", template)
    return tokenizer


def test_only_the_answer_is_learned_up_to_its_end_token(tokenizer: Any) -> None:
    (tokens,) = encode_chat(tokenizer, [ASK, REPLY])
    assert learned(tokenizer, tokens) == "world<|end|>"
    assert tokens.ids[-1] == tokenizer.eos_token_id  # the template's line feed behind it is cut


def test_the_context_is_what_inference_sees(tokenizer: Any) -> None:
    (tokens,) = encode_chat(tokenizer, [ASK, REPLY])
    prompt = encode_prompt(tokenizer, [ASK])
    assert tokens.ids[: len(prompt)] == prompt
    assert not any(tokens.supervised[: len(prompt)])


def test_every_assistant_turn_is_learned(tokenizer: Any) -> None:
    (tokens,) = encode_chat(tokenizer, [ASK, REPLY, AGAIN, LAST])
    assert learned(tokenizer, tokens) == "world<|end|>done<|end|>"
    text = tokenizer.apply_chat_template([ASK, REPLY, AGAIN, LAST], tokenize=False)
    assert tokenizer.decode(tokens.ids) == text.rstrip("\n")


def test_a_template_that_rewrites_history_gives_one_sequence_a_turn(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = (
        "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' and loop.last %}(thought){% endif %}"
        "{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    with_template(tokenizer, template, monkeypatch)
    first, second = encode_chat(tokenizer, [ASK, REPLY, AGAIN, LAST])
    assert learned(tokenizer, first) == "(thought)world<|end|>"
    assert learned(tokenizer, second) == "(thought)done<|end|>"
    assert "[assistant]world<|end|>" in tokenizer.decode(second.ids)


def test_a_generation_prompt_that_opens_a_thought(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]<think>{% endif %}"
    )
    with_template(tokenizer, template, monkeypatch)
    (tokens,) = encode_chat(tokenizer, [ASK, REPLY])
    assert tokenizer.decode(tokens.ids) == "[user]hello<|end|>[assistant]<think>world<|end|>"
    assert learned(tokenizer, tokens) == "world<|end|>"


def test_a_template_that_turns_the_conversation_round_is_refused(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = "{% for m in messages | reverse %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    with_template(tokenizer, template, monkeypatch)
    with pytest.raises(ModelProblem, match="cannot be told from"):
        encode_chat(tokenizer, [ASK, REPLY])


def test_without_an_end_token_in_the_template_all_of_the_turn_is_learned(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    with_template(tokenizer, template, monkeypatch)
    (tokens,) = encode_chat(tokenizer, [ASK, REPLY])
    assert learned(tokenizer, tokens) == "world\n"


class Merging:
    """Letters are tokens, but `a:` and `:b` stick together: what a prompt's end can do to a completion."""

    eos_token_id: int | None = 0
    chat_template = "unused"
    pairs = (":b",)

    def encode(self, text: str, **_: Any) -> list[int]:
        ids, at = [], 0
        while at < len(text):
            size = 2 if text[at : at + 2] in self.pairs else 1
            ids.append(sum(ord(letter) * 1000**power for power, letter in enumerate(text[at : at + size])))
            at += size
        return ids

    def apply_chat_template(self, conversation: Any, **options: Any) -> str:
        text = "".join(f"{message['role'][0]}:{message['content']}" for message in conversation)
        return text + ("a:" if options["add_generation_prompt"] else "")


def test_a_token_over_the_boundary_is_cut_as_inference_cuts_it() -> None:
    tokenizer = Merging()
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "bb"}]
    (tokens,) = encode_chat(tokenizer, messages)
    prompt = encode_prompt(tokenizer, messages[:1])
    assert tokens.ids == prompt + tokenizer.encode("bb")
    assert tokens.supervised == [False] * len(prompt) + [True, True]


def test_plain_text_is_closed_by_the_end_token(tokenizer: Any) -> None:
    tokens = encode_plain(tokenizer, "1 + 1 =", " 2")
    assert learned(tokenizer, tokens) == " 2<|end|>"
    assert tokenizer.decode(tokens.ids) == "1 + 1 = 2<|end|>"
