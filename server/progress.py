"""What a person sees while the server starts: the phase, the time gone, and the time left by the last start.

On a terminal one bar; elsewhere one line a phase. Durations are kept in the home folder, so that the second start
already knows how long it will take.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_FIRST_GUESS_S = {"base model": 2.0, "engine imports": 14.0, "engine": 28.0}


class StartProgress:
    """`with StartProgress(file) as p: with p.phase("engine"): ...`"""

    def __init__(self, record: Path, *, console: Console | None = None) -> None:
        self._record = record
        self._console = console or Console(file=sys.stderr)
        self._expected = {**_FIRST_GUESS_S, **_read(record)}
        self._took: dict[str, float] = {}
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        if error[0] is None and self._took:
            with contextlib.suppress(OSError):
                self._record.parent.mkdir(parents=True, exist_ok=True)
                self._record.write_text(json.dumps(self._took))

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Shows `name` until the block ends; the bar moves by the time that it took last."""
        began = time.monotonic()
        expected = max(0.5, self._expected.get(name, 5.0))
        stop = self._animate(self._bar, name, expected) if self._bar is not None else None
        if stop is None:
            self._console.print(f"{name}: about {expected:.0f} s", highlight=False)
        try:
            yield
        finally:
            self._took[name] = time.monotonic() - began
            if stop is not None:
                stop()

    def forget(self, name: str) -> None:
        """A phase that was cut short says nothing about how long it takes."""
        self._took.pop(name, None)

    def _animate(self, bar: Progress, name: str, expected: float) -> Callable[[], None]:
        """Moves the bar in a thread of its own, since the phase blocks; the returned call ends it."""
        done = threading.Event()
        task = bar.add_task(name, total=expected)

        def move() -> None:
            began = time.monotonic()
            while not done.wait(0.2):
                bar.update(task, completed=min(expected * 0.99, time.monotonic() - began))

        thread = threading.Thread(target=move, daemon=True)
        thread.start()

        def stop() -> None:
            done.set()
            thread.join()
            bar.remove_task(task)

        return stop


def _read(path: Path) -> dict[str, float]:
    """Seconds by phase; whatever is wrong with the file only costs the forecast."""
    try:
        data = json.loads(path.read_text())
        return {k: float(v) for k, v in data.items()} if isinstance(data, dict) else {}
    except (OSError, ValueError, TypeError):
        return {}
