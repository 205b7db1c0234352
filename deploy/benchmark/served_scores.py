"""The held-out scores of a training file, as a server answers: base and adapter, the same prompts and metrics.

    python -m deploy.benchmark.served_scores deploy/examples/emotion.yaml --data FOLDER --models smollm2-135m emotion

What training measured in its own process can so be held against what a client gets. Prints a table, then one JSON
document as the last line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path

import httpx
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from adapters.base import open_base
from server.settings import parse_command_line
from training.config import TrainConfig
from training.config_file import load_config
from training.data import Sample, load_data
from training.evaluate import Answer, asked, right
from training.model import open_tokenizer

CONTEXT = 4096
_SPARE_TOKENS = 8


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Held-out scores as served.")
    parser.add_argument("config", type=Path, help="the training file")
    parser.add_argument("--data", type=Path, default=None, help="folder of its data files")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--models", nargs="+", required=True)
    parser.add_argument("--concurrency", type=int, default=16)
    chosen = parser.parse_args(arguments)
    config = load_config(chosen.config, [])
    base = open_base(config.model, home=parse_command_line([]).settings.home)
    tokenizer = open_tokenizer(base.folder)
    data = load_data(config, tokenizer, data_root=chosen.data, base_name=base.name, context=CONTEXT)
    samples = asked(data.held_out, config.evaluation)
    scores = asyncio.run(measure(chosen.url, chosen.models, config, samples, chosen.concurrency))
    table = Table(title=f"{config.name}: {len(samples)} held-out samples as served", title_justify="left")
    table.add_column("model")
    metrics = [metric for metric in config.evaluation.metrics if metric != "loss"]
    for metric in metrics:
        table.add_column(metric)
    for model, found in scores.items():
        table.add_row(model, *(f"{found[metric]:.2f}" for metric in metrics))
    Console().print(table, highlight=False)
    print(json.dumps({"name": config.name, "samples": len(samples), "scores": scores}))
    return 0


async def measure(
    url: str, models: list[str], config: TrainConfig, samples: list[Sample], concurrency: int
) -> dict[str, dict[str, float]]:
    """For each model the share of samples that each metric calls right."""
    gate = asyncio.Semaphore(concurrency)
    longest = max(sum(sample.supervised) for sample in samples)
    tokens = config.evaluation.max_new_tokens or longest + _SPARE_TOKENS
    scores: dict[str, dict[str, float]] = {}
    async with httpx.AsyncClient(timeout=600) as http:
        with Progress(console=Console(file=sys.stderr)) as progress:
            bar = progress.add_task("held-out samples", total=len(models) * len(samples))

            async def one(model: str, sample: Sample) -> Answer:
                body = {"model": model, "prompt": sample.prompt_ids, "max_tokens": tokens, "temperature": 0}
                async with gate:
                    answer = await http.post(f"{url}/v1/completions", json=body)
                answer.raise_for_status()
                progress.advance(bar)
                return Answer("", sample.answers, answer.json()["choices"][0]["text"])

            for model in models:
                answers = await asyncio.gather(*(one(model, sample) for sample in samples))
                scores[model] = {
                    metric: sum(right(metric, answer, config.evaluation) for answer in answers) / len(answers)
                    for metric in config.evaluation.metrics
                    if metric != "loss"
                }
    return scores


if __name__ == "__main__":
    sys.exit(main())
