"""Output tokens per second of two servers side by side, for batches of base and adapters.

    python -m deploy.benchmark.mixed_batch http://127.0.0.1:8001 http://127.0.0.1:8002 --adapters home tickets dates

Rounds alternate between the servers, so that a machine whose speed drifts drifts for both; the ratio is taken round
by round. Prints a table, then one JSON document as the last line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from dataclasses import dataclass
from typing import Any

import httpx
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

PROMPT = "Write a long story about a lighthouse keeper, number {number}. Once upon a time"


@dataclass(frozen=True, slots=True)
class Cell:
    """One kind of batch: request i asks model `models[i % len(models)]`."""

    name: str
    models: tuple[str, ...]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("urls", nargs=2, metavar="URL", help="the two servers; ratios are first / second")
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--adapters", nargs="+", required=True)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args(arguments)
    cells = [
        Cell("base only", (chosen.base,)),
        Cell("one adapter", (chosen.adapters[0],)),
        Cell(f"{len(chosen.adapters)} adapters", tuple(chosen.adapters)),
        Cell("base and adapters", (chosen.base, *chosen.adapters)),
    ]
    found = asyncio.run(measure(chosen.urls, cells, chosen))
    report(found, chosen)
    return 0


async def measure(
    urls: list[str], cells: list[Cell], chosen: argparse.Namespace
) -> dict[str, list[list[float]]]:
    """For each cell, for each round: tokens per second of the first and of the second server."""
    found: dict[str, list[list[float]]] = {cell.name: [] for cell in cells}
    async with httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=None)) as http:
        with Progress(console=Console(file=sys.stderr)) as progress:
            bar = progress.add_task("rounds", total=len(cells) * (chosen.rounds + 1) * 2)
            for cell in cells:
                for number in range(chosen.rounds + 1):
                    speeds = []
                    for url in urls:
                        speeds.append(await batch(http, url, cell, chosen))
                        progress.advance(bar)
                    if number:  # the first round warms up both
                        found[cell.name].append(speeds)
    return found


async def batch(http: httpx.AsyncClient, url: str, cell: Cell, chosen: argparse.Namespace) -> float:
    """Output tokens per second of one batch of requests sent at once."""
    began = time.perf_counter()
    jobs = (ask(http, url, cell, number, chosen.tokens) for number in range(chosen.concurrency))
    tokens = sum(await asyncio.gather(*jobs))
    return tokens / (time.perf_counter() - began)


async def ask(http: httpx.AsyncClient, url: str, cell: Cell, number: int, tokens: int) -> int:
    body = {
        "model": cell.models[number % len(cell.models)],
        "prompt": PROMPT.format(number=number),
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
    }
    answer = await http.post(f"{url}/v1/completions", json=body)
    answer.raise_for_status()
    return int(answer.json()["usage"]["completion_tokens"])


def report(found: dict[str, list[list[float]]], chosen: argparse.Namespace) -> None:
    """The table for people, then the JSON for machines."""
    title = f"output tok/s, {chosen.concurrency} at once, {chosen.tokens} tokens each, {chosen.rounds} rounds"
    table = Table(title=title, title_justify="left")
    for heading in ("batch", chosen.urls[0], chosen.urls[1], "ratio, median (min to max)"):
        table.add_column(heading)
    document: dict[str, Any] = {"urls": chosen.urls, "concurrency": chosen.concurrency, "cells": {}}
    for name, rounds in found.items():
        first, second = zip(*rounds, strict=True)
        ratios = [a / b for a, b in rounds]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        table.add_row(name, f"{statistics.median(first):.1f}", f"{statistics.median(second):.1f}", spread)
        document["cells"][name] = {"rounds": rounds, "ratio_median": statistics.median(ratios)}
    Console().print(table, highlight=False)
    print(json.dumps(document))


if __name__ == "__main__":
    sys.exit(main())
