"""Three narrow tasks for the demo, made from seeds: no download, any number of sentences, none of them twice.

`home` turns a spoken command into strict JSON, `tickets` routes a support message to a desk, `dates` writes a
date that was said in words as ISO 8601. Held-out sentences never occur in training; a part of what they are
made of (rooms, values, turns of phrase) does, as it would in use. Run it: `python -m deploy.demo.tasks
FOLDER`.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from deploy.demo.phrases import (
    DATE_FRAMES,
    DEVICES,
    HOME_ENDS,
    HOME_STARTS,
    MONTHS,
    ROOMS,
    TICKET_FRAMES,
    TICKETS,
)


@dataclass(frozen=True, slots=True)
class Example:
    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class Task:
    name: str
    system: str
    make: Callable[[random.Random], Example]


def home(chance: random.Random) -> Example:
    device = chance.choice(DEVICES)
    action = chance.choice(device.actions)
    room = chance.choice(ROOMS)
    value = action.pick(chance) if action.pick else None
    phrase = chance.choice(action.phrases).format(
        device=chance.choice(device.names), room=room, value=spoken(value) if value is not None else ""
    )
    sentence = f"{chance.choice(HOME_STARTS)}{phrase}{chance.choice(HOME_ENDS)}"
    answer = {"device": device.name, "room": room.replace(" ", "_"), "action": action.name, "value": value}
    return Example(sentence, json.dumps(answer, separators=(",", ":")))


def tickets(chance: random.Random) -> Example:
    name = chance.choice(sorted(TICKETS))
    desk = TICKETS[name]
    words = {key: chance.choice(options) for key, options in desk.words.items()}
    problem = chance.choice(desk.problems).format(**words)
    sentence = chance.choice(TICKET_FRAMES).format(problem=problem)
    return Example(sentence[0].upper() + sentence[1:], name)


def dates(chance: random.Random) -> Example:
    year, month = chance.randint(1950, 2049), chance.randint(1, 12)
    day = chance.randint(1, _DAYS[month - 1])
    frame = chance.choice(DATE_FRAMES)
    sentence = frame.format(day=ordinal(day), month=MONTHS[month - 1], year=spoken_year(year, chance))
    return Example(sentence, f"{year:04d}-{month:02d}-{day:02d}")


_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = "zero ten twenty thirty forty fifty sixty seventy eighty ninety".split()  # noqa: SIM905
_ORDINALS = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
}


def spoken(number: int) -> str:
    """0 to 99 in words."""
    if number < 20:
        return _ONES[number]
    tens, ones = divmod(number, 10)
    return _TENS[tens] + (f" {_ONES[ones]}" if ones else "")


def ordinal(number: int) -> str:
    *head, last = spoken(number).split()
    regular = f"{last[:-1]}ieth" if last.endswith("y") else f"{last}th"
    return " ".join([*head, _ORDINALS.get(last, regular)])


def spoken_year(year: int, chance: random.Random) -> str:
    """As people say it: nineteen eighty four, two thousand and six, twenty nineteen."""
    century, rest = divmod(year, 100)
    if century == 20 and rest < 10:
        return "two thousand" + (f" and {spoken(rest)}" if rest else "")
    if century == 20 and chance.random() < 0.3:
        return f"two thousand {spoken(rest)}"
    if rest == 0:
        return f"{spoken(century)} hundred"
    return f"{spoken(century)} {'oh ' if rest < 10 else ''}{spoken(rest)}"


TASKS = {
    task.name: task
    for task in (
        Task("home", "Turn the home command into JSON with device, room, action, value.", home),
        Task("tickets", "Route the message to a desk.", tickets),
        Task("dates", "Write the date in the sentence as ISO 8601.", dates),
    )
}


def examples(task: Task, count: int, seed: int) -> Iterator[Example]:
    """`count` examples with sentences that are all different."""
    chance = random.Random(f"{task.name}/{seed}")
    seen: set[str] = set()
    while len(seen) < count:
        example = task.make(chance)
        if example.prompt not in seen:
            seen.add(example.prompt)
            yield example


def write_task(task: Task, folder: Path, *, train: int, held_out: int, seed: int = 0) -> None:
    """FOLDER/<task>/train.jsonl and eval.jsonl, as chat messages. No sentence is in both."""
    made = list(examples(task, train + held_out, seed))
    target = folder / task.name
    target.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", made[:train]), ("eval", made[train:])):
        lines = [json.dumps(messages(task, example), ensure_ascii=False) + "\n" for example in part]
        (target / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def messages(task: Task, example: Example) -> dict[str, list[dict[str, str]]]:
    return {
        "messages": [
            {"role": "system", "content": task.system},
            {"role": "user", "content": example.prompt},
            {"role": "assistant", "content": example.completion},
        ]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the demo's three tasks as chat JSONL.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=480)
    parser.add_argument("--held-out", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    for task in TASKS.values():
        write_task(task, chosen.folder, train=chosen.train, held_out=chosen.held_out, seed=chosen.seed)


if __name__ == "__main__":
    main()
