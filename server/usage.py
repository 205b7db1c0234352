"""Counts what each adapter version is asked and answers, around the engine's `generate`, where every route passes.

vLLM has no token counts per adapter; the ledger that bills them will take the same numbers.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Callable
from contextvars import ContextVar
from typing import Any

from server.metrics import Metrics

# When the request reached the gateway (time.monotonic), so that TTFT includes every wait of ours.
arrival: ContextVar[float | None] = ContextVar("onebase_arrival", default=None)


def metered(
    generate: Callable[..., AsyncGenerator[Any, None]], metrics: Metrics, base: str
) -> Callable[..., Any]:
    """`generate` with its tokens, TTFT and TPOT recorded under the adapter (`base` when there is none)."""
    metrics.label(base)  # taken now, so that a hundred adapters cannot push the base into `other`

    def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        lora = kwargs.get("lora_request")
        params = kwargs["sampling_params"] if "sampling_params" in kwargs else args[1]
        return _watch(
            generate(*args, **kwargs), metrics, metrics.label(lora.lora_name if lora else base), params
        )

    return wrapper


async def _watch(
    outputs: AsyncGenerator[Any, None], metrics: Metrics, label: str, params: Any
) -> AsyncGenerator[Any, None]:
    began = arrival.get() or time.monotonic()
    kind = getattr(params.output_kind, "name", "")
    first = last = 0.0
    prompt = 0
    tokens: dict[int, int] = {}  # by choice: with `n` over 1, an output need not hold every choice
    reason = "abort"
    try:
        # Closed with us: an answer that nobody reads any more is aborted at once, not when memory is tidied.
        async with contextlib.aclosing(outputs):
            async for output in outputs:
                last = time.monotonic()
                prompt = prompt or len(output.prompt_token_ids or ())
                for choice in output.outputs:
                    new = len(choice.token_ids)
                    tokens[choice.index] = tokens.get(choice.index, 0) + new if kind == "DELTA" else new
                    if (
                        new and not first and kind != "FINAL_ONLY"
                    ):  # a whole answer tells nothing of its first token
                        first = last
                if output.finished:
                    reason = (output.outputs[0].finish_reason if output.outputs else None) or "stop"
                yield output
    finally:
        produced = sum(tokens.values())
        metrics.requests.labels(label, reason).inc()
        metrics.tokens.labels(label, "prompt").inc(prompt)
        metrics.tokens.labels(label, "generation").inc(produced)
        if first:
            metrics.ttft.labels(label).observe(first - began)
            if produced > 1 and last > first:
                metrics.tpot.labels(label).observe((last - first) / (produced - 1))
