"""The command `onebase`: its groups, and the one place where an error becomes a line and an exit code.

Commands live in deploy/commands and import what they need when they run, so that `onebase --help` answers at
once. What an error means to the shell is in deploy/exits.py.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, cast

import typer

from deploy import output
from deploy.commands import adapters, models, serving

INTERRUPTED = 130
# typer exports this class only by its child.
UsageError = cast("type[Exception]", typer.BadParameter.__base__)

app = typer.Typer(
    name="onebase",
    help="One base model, many fine-tunes: train, register and serve LoRA adapters on one engine.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
PASSES_FLAGS_ON = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
app.command("serve", context_settings=PASSES_FLAGS_ON)(serving.serve)
app.command("config", context_settings=PASSES_FLAGS_ON)(serving.config)
app.command("train")(models.train)
app.add_typer(adapters.app, name="adapters")
adapters.app.command("merge")(models.merge)
app.command("base")(models.base)
app.command("demo")(serving.demo)


@dataclass(slots=True)
class Invocation:
    """What the options before the command say."""

    debug: bool = False


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the stack trace of an error (ONEBASE_DEBUG=1).")
    ] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    """One base model, many fine-tunes: train, register and serve LoRA adapters on one engine."""
    if isinstance(context.obj, Invocation):
        context.obj.debug |= debug
    if version:
        from importlib.metadata import version as version_of

        print(f"onebase {version_of('onebase')}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


def main() -> None:
    """Entry point of the command."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Carry out one command line and return its exit code: whatever happens, at most one line says why."""
    invocation = Invocation(debug=os.environ.get("ONEBASE_DEBUG", "") not in ("", "0"))
    try:
        code = app(list(arguments), prog_name="onebase", standalone_mode=False, obj=invocation)
        sys.stdout.flush()
    except Exception as error:  # noqa: BLE001 - the outermost edge
        return report(error, debug=invocation.debug)
    if code == INTERRUPTED:  # typer has made this of a KeyboardInterrupt
        output.note("interrupted")
    return code if isinstance(code, int) else 0


def report(error: BaseException, *, debug: bool) -> int:
    """Say what went wrong in one line, and return the exit code."""
    from deploy.exits import Exit, code_for, message_for

    if isinstance(error, BrokenPipeError):
        # The reader of a pipe has left (`onebase ... | head`): not an error, and nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.CUT_OFF
    if debug:
        traceback.print_exception(error)
    if isinstance(error, typer.Abort):  # end of input where an answer was asked for
        output.note("interrupted")
        return Exit.INTERRUPTED
    if isinstance(error, UsageError):
        output.note(f"error: {usage(error)}")
        return Exit.USAGE
    if (code := code_for(error)) is not None:
        output.note(f"error: {message_for(error)}")
        return code
    output.note(
        f"error: internal error, {type(error).__name__}: {message_for(error)} "
        "(`onebase --debug ...` shows where; please report it)"
    )
    return Exit.INTERNAL


def usage(error: Exception) -> str:
    """A wrong command line in one line, with the command whose help says it right."""
    said = " ".join(str(error.format_message() if hasattr(error, "format_message") else error).split())
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "onebase"
    return f"{said.rstrip('.')}; `{command} --help` shows what there is"
