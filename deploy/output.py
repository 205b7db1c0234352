"""What the command line prints: results on standard output, everything said beside them on standard error.

Results are tables for people or one JSON document for programs (`--json`), never both. rich is loaded only
when a table is drawn.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str) -> None:
    """Print rows under their column heads; `empty` is said when there are none.

    Into a pipe or a file every row is one line, whatever its width.
    """
    if not rows:
        note(empty)
        return
    cells = [[str(cell) for cell in row] for row in (columns, *rows)]
    if not sys.stdout.isatty():
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for row in cells:
            print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        drawn.add_column(column, overflow="fold")
    for row in cells[1:]:
        drawn.add_row(*row)
    Console(highlight=False, markup=False, emoji=False).print(drawn)


def facts(pairs: Mapping[str, object]) -> None:
    """Print `name  value` lines, names aligned; a list is one line an entry."""
    width = max(map(len, pairs), default=0)
    for name, value in pairs.items():
        lines = value if isinstance(value, list | tuple) else [value]
        for number, line in enumerate(lines or ["-"]):
            print(f"{'' if number else name:<{width}}  {line}".rstrip())


def document(value: Any) -> None:
    """Print one JSON document."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def note(text: str) -> None:
    """Say something that is no result."""
    print(text, file=sys.stderr)


def size(count: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def short(digest: str) -> str:
    """The beginning of a digest: enough to tell two apart by eye."""
    algorithm, _, digits = digest.rpartition(":")
    return f"{algorithm}:{digits[:12]}" if algorithm else digits[:12]


def progress() -> Callable[[str, int, int], None]:
    """A callback (what, done, total) that keeps one line of a terminal up to date; silent elsewhere."""
    visible = sys.stderr.isatty()

    def show(what: str, done: int, total: int) -> None:
        if not visible:
            return
        share = f" {100 * done // total:3d} %" if total else ""
        end = "\n" if total and done >= total else ""
        print(f"\r\033[K{what}{share}", end=end, file=sys.stderr, flush=True)

    return show
