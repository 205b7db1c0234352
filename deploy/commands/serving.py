"""`onebase serve`, `onebase config` and `onebase demo`."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from deploy import local, output
from deploy.commands import options

HELP = ("--help", "-h")


def serve(context: typer.Context) -> None:
    """Serve a base model and its adapters.

    `onebase serve [MODEL] [FLAGS]`: flags of OneBase and of vLLM stand side by side; `--help` lists ours.
    """
    arguments = list(context.args)
    if any(word in HELP for word in arguments):
        explain_flags()
        return
    from server.settings import parse_command_line

    loaded = parse_command_line(arguments)
    from server.app import main

    raise typer.Exit(main(loaded))


def config(context: typer.Context) -> None:
    """Show the settings in force, and their origin.

    Takes what `serve` takes, and `--json`.
    """
    arguments = [word for word in context.args if word != "--json"]
    if any(word in HELP for word in arguments):
        explain_flags()
        return
    from server.settings import explain, parse_command_line

    loaded = parse_command_line(arguments)
    rows = explain(loaded)
    if len(arguments) != len(context.args):
        settings = [dict(zip(("key", "value", "from", "help"), row, strict=True)) for row in rows]
        output.document({"settings": settings, "vllm_flags": list(loaded.vllm_flags)})
        return
    output.table(("setting", "value", "from", "what it is"), rows, empty="")
    if loaded.vllm_flags:
        print(f"handed to vLLM: {' '.join(loaded.vllm_flags)}")


def explain_flags() -> None:
    """Help of `serve`: our flags, and where vLLM's are."""
    from server.settings import flag_help

    print("Usage: onebase serve [MODEL] [FLAGS]\n")
    print("Serve a base model and every adapter of the registry that fits it, behind OpenAI's API.")
    print(
        "Each is also an environment variable (--max-loras is ONEBASE_MAX_LORAS) and a key of --config FILE."
    )
    print(
        "Any other flag goes to vLLM unchanged, for example --tensor-parallel-size 2 or --quantization fp8.\n"
    )
    rows: Sequence[tuple[str, str, str]] = [("--config", "file", "a YAML file with settings"), *flag_help()]
    width = max(len(f"{flag} {kind}") for flag, kind, _ in rows)
    for flag, kind, help_ in rows:
        print(f"  {f'{flag} {kind}':<{width}}  {help_}")


def demo(home: options.Home = None) -> None:
    """Train some adapters, serve and ask them.

    On the embedded base; needs nothing but this machine.
    """
    from deploy.demo.run import main

    raise typer.Exit(main(local.settings(home)))
