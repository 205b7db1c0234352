"""What the demo's sentences are made of. Data only: words, turns of phrase, and what they mean."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

Pick = Callable[[random.Random], int]


@dataclass(frozen=True, slots=True)
class Action:
    """`pick` draws the value that the phrases speak of; without it the value is null."""

    name: str
    phrases: tuple[str, ...]
    pick: Pick | None = None


@dataclass(frozen=True, slots=True)
class Device:
    name: str
    names: tuple[str, ...]
    actions: tuple[Action, ...]


@dataclass(frozen=True, slots=True)
class Desk:
    problems: tuple[str, ...]
    words: dict[str, tuple[str, ...]] = field(default_factory=dict)


def _each(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split("|"))


def _percent(chance: random.Random) -> int:
    return chance.randint(1, 19) * 5


def _degrees(chance: random.Random) -> int:
    return chance.randint(16, 26)


def _volume(chance: random.Random) -> int:
    return chance.randint(1, 20)


ROOMS = _each(
    "kitchen | bedroom | bathroom | living room | hallway | garage | office | dining room | attic | nursery"
    " | guest room | basement"
)
HOME_STARTS = ("", "please ", "could you ", "hey, ", "can you ", "would you ", "okay, ", "now ")
HOME_ENDS = ("", " please", " now", " for me", " right away", ", thanks", " when you can")

_ON = Action(
    "on",
    _each(
        "switch on the {device} in the {room} | turn the {room} {device} on | turn on the {room} {device}"
        " | get the {device} going in the {room} | start the {device} in the {room}"
    ),
)
_OFF = Action(
    "off",
    _each(
        "switch off the {device} in the {room} | turn the {room} {device} off | turn off the {room} {device}"
        " | kill the {device} in the {room} | stop the {device} in the {room}"
    ),
)
_DIM = _each(
    "dim the {room} {device} to {value} percent | bring the {device} in the {room} to {value} percent"
    " | lower the {room} {device} to {value} percent"
)
_WARM = _each(
    "set the {room} {device} to {value} degrees | put the {device} in the {room} at {value} degrees"
    " | bring the {room} {device} to {value} degrees"
)
_MOVE = _each(
    "move the {room} {device} to {value} percent | set the {device} in the {room} to {value} percent"
    " | bring the {room} {device} to {value} percent"
)
_PLAY = _each(
    "set the {room} {device} to volume {value} | put the {device} in the {room} at volume {value}"
    " | play the {room} {device} at volume {value}"
)
_RUN = _each("run the {room} {device} at {value} percent | set the {device} in the {room} to {value} percent")

DEVICES = (
    Device("light", _each("light | lights | lamp | lamps"), (_ON, _OFF, Action("set", _DIM, _percent))),
    Device("heating", _each("heating | radiator | thermostat"), (_ON, _OFF, Action("set", _WARM, _degrees))),
    Device(
        "blinds",
        _each("blinds | shutters | shades"),
        (
            Action("open", _each("open the {device} in the {room} | raise the {room} {device}")),
            Action("close", _each("close the {room} {device} | shut the {device} in the {room}")),
            Action("set", _MOVE, _percent),
        ),
    ),
    Device(
        "speaker", _each("speaker | music | radio | stereo"), (_ON, _OFF, Action("volume", _PLAY, _volume))
    ),
    Device("fan", _each("fan | ventilator"), (_ON, _OFF, Action("set", _RUN, _percent))),
    Device(
        "door",
        _each("door | doors"),
        (
            Action("lock", _each("lock the {room} {device} | lock up the {device} in the {room}")),
            Action("unlock", _each("unlock the {room} {device} | undo the {device} in the {room}")),
        ),
    ),
)

TICKET_FRAMES = _each(
    "{problem} | hi, {problem} | hello there, {problem}. Please help. | {problem}. What should I do?"
    " | good morning, {problem} | {problem} and I am getting annoyed | just to let you know: {problem}"
    " | I have a question. {problem} | second message now: {problem} | {problem}. Thanks in advance!"
)
_GOODS = _each("parcel | order | package | sofa | headset | lamp | book | phone case")
_CITIES = _each("Leeds | Porto | Lyon | Graz | Turin | Bergen")
_SCREENS = _each("checkout page | search box | settings screen | calendar | map | photo viewer | report page")

TICKETS = {
    "billing": Desk(
        _each(
            "I was charged {times} for {month} | my invoice for {month} shows the wrong amount"
            " | the receipt for {month} is missing the tax number | my card was debited {times} this week"
            " | why did my monthly fee go up in {month} | the payment from {month} still shows as open"
        ),
        {
            "times": _each("twice | three times | two times"),
            "month": _each("January | March | May | July | October | December"),
        },
    ),
    "delivery": Desk(
        _each(
            "my {goods} has not arrived yet | the tracking page says my {goods} is stuck in {city}"
            " | the courier left my {goods} with a stranger | when will the {goods} get to {city}"
            " | my {goods} was sent to the wrong address in {city}"
            " | I have been waiting for the {goods} for {days} days"
        ),
        {"goods": _GOODS, "city": _CITIES, "days": _each("five | nine | twelve")},
    ),
    "returns": Desk(
        _each(
            "I want to send the {goods} back | I do not like the {goods} and would like my money back"
            " | how do I return the {goods} | the {goods} arrived broken, I want to exchange it"
            " | I need a return label for the {goods} | may I swap the {goods} for another colour"
        ),
        {"goods": _GOODS},
    ),
    "login": Desk(
        _each(
            "I cannot sign in on my {device} | the password reset mail never reaches me"
            " | my account is locked after {count} attempts | I forgot the password for my {device} app"
            " | the code for signing in does not come to my {device}"
            " | it says wrong password on my {device} although it is right"
        ),
        {"device": _each("phone | tablet | laptop | desktop"), "count": _each("three | five | ten")},
    ),
    "bug": Desk(
        _each(
            "the {screen} crashes when I open it | the {screen} stays blank since the update"
            " | I get error {number} on the {screen} | the {screen} freezes after a few seconds"
            " | the button on the {screen} does nothing | the {screen} shows garbled text"
        ),
        {"screen": _SCREENS, "number": _each("404 | 500 | 17 | 1203")},
    ),
    "feature": Desk(
        _each(
            "it would be great if the {screen} had a dark mode | could you add {thing} to the {screen}"
            " | I wish the {screen} could export to {format} | please consider {thing} in a future version"
            " | my team would love {thing} | any plans to support {format} files"
        ),
        {
            "screen": _SCREENS,
            "thing": _each("keyboard shortcuts | offline mode | bigger fonts | reminders"),
            "format": _each("PDF | CSV | Excel | Markdown"),
        },
    ),
    "security": Desk(
        _each(
            "somebody in {city} logged into my account, it was not me | I think my account was hacked"
            " | I got a strange mail that asks for my password | a caller pretended to be from your company"
            " | there is a device in {city} on my account that I do not know"
            " | I found a hole in your site through which data leaks"
        ),
        {"city": _CITIES},
    ),
    "sales": Desk(
        _each(
            "what does the plan for {count} people cost | do you offer a discount for {group}"
            " | we are {count} people and would like a quote | can I book a demo for {group}"
            " | is there a trial before we buy for {count} users | which plan suits {group} best"
        ),
        {
            "count": _each("ten | fifty | two hundred | thirty"),
            "group": _each("schools | charities | startups | hospitals"),
        },
    ),
}

MONTHS = _each(
    "January | February | March | April | May | June | July | August | September | October | November"
    " | December"
)
DATE_FRAMES = _each(
    "the {day} of {month} {year} | {month} the {day}, {year} | we met on the {day} of {month} {year}"
    " | the contract ends on {month} {day}, {year} | she was born on the {day} of {month}, {year}"
    " | it has to be done by {month} the {day} {year} | the train left on {month} {day} {year}"
    " | their wedding was on the {day} of {month} in {year} | remind me on {month} the {day} of {year}"
    " | the letter is dated the {day} of {month} {year} | in {year}, on the {day} of {month}"
    " | on {month} {day} in the year {year}"
)
