"""vLLM's `general_plugins` entry point: runs in the API process, the engine core and every worker.

It only hooks the place where a CPU worker asks which LoRA kernels to use. The hook tests our kernels on a small
case first and goes back to vLLM's own, loudly, when the engine under us changed.
"""

from __future__ import annotations

import os

_GROUPED = "server.engine.cpu_lora.GroupedPunicaWrapper"


def register() -> None:
    """Called by vLLM; safe to call several times in one process."""
    if os.environ.get("ONEBASE_CPU_LORA") != "grouped":
        return
    from vllm.platforms import current_platform

    kind = type(current_platform)
    if not current_platform.is_cpu() or getattr(kind, "_onebase_hook", False):
        return
    stock = kind.get_punica_wrapper

    def get_punica_wrapper(cls: type) -> str:
        """Qualified name of the LoRA wrapper for CPU workers."""
        from vllm.logger import init_logger

        from server.engine.cpu_lora import self_test

        problem = self_test()
        if problem is None:
            return _GROUPED
        init_logger("vllm.onebase").error(
            "OneBase's CPU LoRA kernels are off, vLLM's own serve instead (base requests in a batch with adapters may "
            "be wrong): %s",
            problem,
        )
        return str(stock())

    kind.get_punica_wrapper = classmethod(get_punica_wrapper)
    kind._onebase_hook = True
