"""Options that several commands share, declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Home = Annotated[
    Path | None,
    typer.Option(
        "--home",
        help="Folder of registry, caches and runs (ONEBASE_HOME; default ~/.onebase).",
        show_default=False,
    ),
]
Store = Annotated[
    Path | None,
    typer.Option(
        "--store", help="Folder of the registry (ONEBASE_STORE; default HOME/registry).", show_default=False
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Base = Annotated[
    str | None,
    typer.Option(
        "--base",
        help="Base model: a folder, a Hugging Face id, or smollm2-135m (the default; ONEBASE_MODEL).",
        show_default=False,
    ),
]
By = Annotated[str | None, typer.Option("--by", help="Who does it (default: this user).", show_default=False)]
Why = Annotated[str, typer.Option("--why", help="Why, for the history.", show_default=False)]
AcceptBase = Annotated[
    bool,
    typer.Option("--accept-base", help="Take this for the adapter's base, if the shapes fit."),
]
Out = Annotated[Path, typer.Option("--out", help="Folder to write, new or empty.")]


def user() -> str:
    """This user's name, for the history."""
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no such user: a container with an arbitrary uid
        return "unknown"
