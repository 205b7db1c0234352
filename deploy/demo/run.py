"""`onebase demo`: from data to several fine-tunes of one base answering side by side, on this machine alone.

Three narrow tasks are generated, one LoRA is trained for each, checked and published, one server is started, and
the OpenAI SDK asks base and adapters the same questions at the same moment. Then a better version of one adapter
is published while requests run. Every step is a command that a user could type; what is done already (in
HOME/demo) is not done again. The demo has a registry of its own, so that yours stays as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import openai
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from adapters.registry import Registry
from adapters.store import LocalStore
from deploy.demo.tasks import TASKS, write_task

if TYPE_CHECKING:
    from server.settings import Settings

BASE = "smollm2-135m"
HELD_OUT = 40
# The adapter that gets a second version under traffic: its first one is stopped early on purpose.
MOVING = "dates"
FIRST_VERSION = ("optimiser.max_steps=12",)
HERE = Path(__file__).parent
START_LIMIT_S = 600.0


class DemoFailed(Exception):
    """A step of the demo failed; the message says which and where to look."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the demo keeps its things."""

    home: Path

    @property
    def root(self) -> Path:
        return self.home / "demo"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def store(self) -> Path:
        return self.root / "registry"

    def run(self, name: str) -> Path:
        return self.root / "runs" / name


def main(settings: Settings) -> int:
    """Run the demo; 0 when every request was answered and every adapter beat the base at its task."""
    console = Console()
    place = Place(settings.home)
    began = time.monotonic()
    # Being told to stop ends the commands that run for us as well, as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        prepare(place, console)
        with serving(place, settings, console) as url:
            good = asyncio.run(show(url, place, console))
            console.print(
                f"\nfrom the command to the tables: {time.monotonic() - began:.0f} s", highlight=False
            )
            if sys.stdin.isatty() and sys.stdout.isatty():
                stay(url, console)
    except DemoFailed as failure:
        console.print(f"error: {failure}", highlight=False, soft_wrap=True)
        return 1
    return 0 if good else 1


def prepare(place: Place, console: Console) -> None:
    """Data, and one trained and published adapter a task; a second version of one of them waits unpublished."""
    console.rule("three narrow tasks, one LoRA each", align="left")
    for task in TASKS.values():
        if not (place.data / task.name / "eval.jsonl").exists():
            write_task(task, place.data, train=480, held_out=100)
    registry = Registry(LocalStore(place.store), cache=place.home / "cache")
    published = set(registry.names())
    for name in TASKS:
        moving = name == MOVING
        run = place.run(f"{name}-1" if moving else name)
        if name not in published or not finished(run):
            train(place, name, run, *(FIRST_VERSION if moving else ()))
        else:
            console.print(f"{name}: trained and published before", highlight=False)
    if not finished(place.run(f"{MOVING}-2")):
        train(place, MOVING, place.run(f"{MOVING}-2"), publish=False)
    # Each demo shows the move anew: production starts at version 1.
    registry.set_alias(MOVING, "production", 1, by="demo", why="the demo starts over")


def finished(run: Path) -> bool:
    return (run / "report.json").exists()


def adapter_folder(run: Path) -> Path:
    return run / str(json.loads((run / "report.json").read_text())["folder"])


def train(place: Place, name: str, out: Path, *changes: str, publish: bool = True) -> None:
    """`onebase train`, its progress shown as it goes."""
    flags = ["--data", str(place.data), "--out", str(out), *onto(place)]
    for change in changes:
        flags += ["--set", change]
    onebase("train", str(HERE / f"{name}.yaml"), *flags, "--publish" if publish else "--no-publish")


def onto(place: Place) -> list[str]:
    return ["--home", str(place.home), "--store", str(place.store)]


def onebase(*arguments: str) -> None:
    """One command of ours, shown before it runs. Raises DemoFailed when it fails."""
    print("$ onebase " + " ".join(arguments), flush=True)
    if subprocess.run([command(), *arguments], check=False).returncode:
        raise DemoFailed(f"`onebase {arguments[0]}` failed, see above; mend that and run the demo again")


def command() -> str:
    """The `onebase` beside this interpreter, else the one on PATH."""
    beside = Path(sys.executable).with_name("onebase")
    found = str(beside) if beside.exists() else shutil.which("onebase")
    if found is None:
        raise DemoFailed("the command `onebase` is not installed beside this Python; run `make setup`")
    return found


@contextlib.contextmanager
def serving(place: Place, settings: Settings, console: Console) -> Iterator[str]:
    """One server over the demo's registry; its address. It ends with the block."""
    console.rule("one server, one base, every adapter", align="left")
    port = free_port(settings.port)
    log = place.root / "server.log"
    arguments = ["serve", BASE, "--port", str(port), *onto(place)]
    print("$ onebase " + " ".join(arguments), flush=True)
    with log.open("wb") as out:
        server = subprocess.Popen([command(), *arguments], stdout=out, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_ready(server, url, log, console)
        yield url
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()


def free_port(wanted: int) -> int:
    """`wanted` when nobody listens there, else any free one."""
    for port in (wanted, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise DemoFailed("no free port on this machine")


def wait_ready(server: subprocess.Popen[bytes], url: str, log: Path, console: Console) -> None:
    began = time.monotonic()
    with console.status("starting the engine"):
        while time.monotonic() - began < START_LIMIT_S:
            if server.poll() is not None:
                last = log.read_text(errors="replace").strip().splitlines()[-1:]
                raise DemoFailed(f"the server ended: {' '.join(last)} (all of it: {log})")
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                    console.print(f"ready in {time.monotonic() - began:.0f} s: {url}/v1", highlight=False)
                    return
            time.sleep(0.2)
    raise DemoFailed(f"the server was not ready within {START_LIMIT_S:.0f} s, see {log}")


async def show(url: str, place: Place, console: Console) -> bool:
    """The three tables; whether they show what they should."""
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300) as sdk:
        await same_questions(sdk, place, console)
        better = await held_out_scores(sdk, place, console)
        moved = await publish_under_traffic(sdk, place, console)
    return better and moved


async def same_questions(sdk: openai.AsyncOpenAI, place: Place, console: Console) -> None:
    """Base and adapters answer the same questions in one batch."""
    models = [BASE, *TASKS]
    questions = [held_out(place, name)[0] for name in TASKS]
    jobs = [(question, model) for question in questions for model in models]
    answers = await asyncio.gather(*(ask(sdk, model, question) for question, model in jobs))
    table = Table(
        title=f"{len(jobs)} requests at the same moment, one base model",
        title_justify="left",
        show_lines=True,
    )
    table.add_column("question")
    for model in models:
        table.add_column(model, overflow="fold")
    for row, question in enumerate(questions):
        said = [answer for answer, _ in answers[row * len(models) : (row + 1) * len(models)]]
        table.add_row(question[1]["content"], *(short(text) for text in said))
    console.print(table, highlight=False)


async def held_out_scores(sdk: openai.AsyncOpenAI, place: Place, console: Console) -> bool:
    """Exact match on sentences that no adapter has seen; true when each adapter beats the base."""
    jobs = [
        (task, model, row)
        for task in TASKS
        for model in (BASE, task)
        for row in held_out(place, task)[:HELD_OUT]
    ]
    gate = asyncio.Semaphore(32)
    right: Counter[tuple[str, str]] = Counter()
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("held-out questions", total=len(jobs))

        async def one(task: str, model: str, row: list[dict[str, str]]) -> None:
            async with gate:
                answer, _ = await ask(sdk, model, row)
            right[task, model] += answer.strip() == row[-1]["content"]
            progress.advance(bar)

        await asyncio.gather(*(one(*job) for job in jobs))
    table = Table(
        title=f"exact match on {HELD_OUT} held-out questions a task, as served", title_justify="left"
    )
    for heading in ("task", BASE, "its adapter"):
        table.add_column(heading)
    for task in TASKS:
        table.add_row(task, *(f"{right[task, model] / HELD_OUT:.0%}" for model in (BASE, task)))
    console.print(table, highlight=False)
    return all(right[task, task] > right[task, BASE] for task in TASKS)


async def publish_under_traffic(sdk: openai.AsyncOpenAI, place: Place, console: Console) -> bool:
    """Version 2 goes live while requests run; true when none failed and both versions answered."""
    rows = held_out(place, MOVING)
    answered: Counter[str] = Counter()
    right: Counter[str] = Counter()
    failed: list[str] = []
    stop = asyncio.Event()

    async def traffic(first: int) -> None:
        number = first
        while not stop.is_set():
            row = rows[number % len(rows)]
            number += 8
            try:
                answer, model = await ask(sdk, MOVING, row)
            except openai.OpenAIError as error:
                failed.append(str(error))
                continue
            answered[model] += 1
            right[model] += answer.strip() == row[-1]["content"]

    console.rule(f"a second version of `{MOVING}`, while 8 clients ask it", align="left")
    crowd = [asyncio.create_task(traffic(number)) for number in range(8)]
    await until(lambda: sum(answered.values()) >= 24 or bool(failed))
    before = set(answered)
    second = adapter_folder(place.run(f"{MOVING}-2"))
    flags = ["--base", BASE, "--alias", "production", "--why", "more training", *onto(place)]
    await asyncio.to_thread(onebase, "adapters", "publish", MOVING, str(second), *flags)
    await until(lambda: sum(n for model, n in answered.items() if model not in before) >= 24 or bool(failed))
    stop.set()
    await asyncio.gather(*crowd)
    table = Table(
        title=f"{sum(answered.values())} requests for `{MOVING}`, {len(failed)} failed", title_justify="left"
    )
    for heading in ("answered by", "requests", "exact match"):
        table.add_column(heading)
    for model in sorted(answered):
        table.add_row(model, str(answered[model]), f"{right[model] / answered[model]:.0%}")
    console.print(table, highlight=False)
    for reason in failed[:3]:
        console.print(f"failed: {reason}", highlight=False)
    return not failed and len(answered) == 2


async def until(done: Any, limit_s: float = 180.0) -> None:
    deadline = time.monotonic() + limit_s
    while not done():
        if time.monotonic() > deadline:
            raise DemoFailed(f"no answers within {limit_s:.0f} s; see server.log in the demo's folder")
        await asyncio.sleep(0.05)


async def ask(sdk: openai.AsyncOpenAI, model: str, row: list[dict[str, str]]) -> tuple[str, str]:
    """(text, the exact version that answered) for the question in `row`, greedily."""
    messages: Any = row[:-1]
    answer = await sdk.chat.completions.create(model=model, messages=messages, max_tokens=48, temperature=0)
    return answer.choices[0].message.content or "", answer.model


def held_out(place: Place, task: str) -> list[list[dict[str, str]]]:
    lines = (place.data / task / "eval.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["messages"] for line in lines]


def short(text: str, width: int = 90) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"


def stay(url: str, console: Console) -> None:
    """Leave the server to the user until Ctrl-C."""
    row = {"model": "home", "messages": [{"role": "user", "content": "it is too dark in the kitchen"}]}
    console.print(
        f"\nThe server is up until Ctrl-C. Try:\n  curl {url}/v1/models", highlight=False, soft_wrap=True
    )
    console.print(f"  curl {url}/v1/chat/completions -d '{json.dumps(row)}'", highlight=False, soft_wrap=True)
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()
    print(os.linesep)
