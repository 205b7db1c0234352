"""`onebase train`, `onebase merge` and `onebase base`: what makes models, and what they are made from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy import local, output
from deploy.commands import options

if TYPE_CHECKING:
    from adapters.manifest import Manifest
    from training.train import TrainResult


def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="The training run, as YAML.")],
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder that the YAML's data files are in.")
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change one value, for example optimiser.epochs=2; repeatable."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the run (default: HOME/runs/NAME).")
    ] = None,
    no_resume: Annotated[
        bool, typer.Option("--no-resume", help="Start again instead of going on from a checkpoint.")
    ] = False,
    publish: Annotated[
        bool | None,
        typer.Option(
            "--publish/--no-publish",
            help="Put the result into the registry (default: when the YAML says so).",
            show_default=False,
        ),
    ] = None,
    home: options.Home = None,
    store: options.Store = None,
    as_json: options.Json = False,
) -> None:
    """Fine-tune a base model as a YAML file says.

    A run that was cut off goes on where it stopped.
    """
    from training.config_file import load_config

    where = local.settings(home, store)
    checked = load_config(config, change or [])
    if publish and checked.publish is None:
        raise typer.BadParameter(
            f"{config} has no `publish` section to name the adapter; add --set publish.name={checked.name}",
            param_hint="--publish",
        )
    base = local.base(where, checked.model)
    from training.train import run

    output_folder = out or where.home / "runs" / checked.name
    result = run(
        checked, base, output=output_folder, data_root=data, resume=not no_resume, progress=not as_json
    )
    published = None
    if checked.publish is not None if publish is None else publish:
        from training.publish import publish as put

        published = put(result, checked, local.registry(where), base)
    report(result, published, as_json=as_json)


def report(result: TrainResult, published: Manifest | None, *, as_json: bool) -> None:
    """What a run gave: its folder, the scores before and after, and the version in the registry."""
    if as_json:
        output.document(
            {
                "folder": str(result.folder),
                "kind": result.kind,
                "scores": result.scores,
                "seconds": result.seconds,
                "published": None if published is None else published.ref,
            }
        )
        return
    before, after = result.scores.get("before") or {}, result.scores.get("after") or {}
    rows = [(name, shown(before.get(name)), shown(after.get(name))) for name in {**before, **after}]
    output.table(("held-out score", "before", "after"), rows, empty="no held-out data: nothing was measured")
    print(f"{result.kind} result in {result.folder}, {result.seconds:.0f} s")
    if published is not None:
        print(f"published {published.ref}")


def shown(value: object) -> str:
    """A score for people."""
    return f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)


def merge(
    adapter: Annotated[
        str, typer.Argument(help="A reference into the registry (name, name@3, name:alias), or a folder.")
    ],
    out: options.Out,
    model: options.Base = None,
    home: options.Home = None,
    store: options.Store = None,
) -> None:
    """Merge an adapter into a copy of its base.

    The result is one full model that any server can run.
    """
    where = local.settings(home, store)
    base = local.base(where, model)
    folder = Path(adapter)
    if not (folder / "adapter_config.json").is_file():
        registry = local.registry(where)
        folder = registry.materialize(registry.resolve(adapter))
    from training.merge import merge as merged

    print(f"merged model in {merged(base, folder, out)}")


def base(
    model: Annotated[str | None, typer.Argument(help="A folder, a Hugging Face id, or smollm2-135m.")] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", help="Revision of a Hugging Face repository.")
    ] = None,
    home: options.Home = None,
    as_json: options.Json = False,
) -> None:
    """Fetch a base model, and print its fingerprint."""
    found = local.base(local.settings(home), model, revision)
    fingerprint = found.fingerprint.to_json()
    value: dict[str, object] = {
        "name": found.name,
        "source": found.source,
        "revision": found.revision,
        "folder": str(found.folder),
        "aliases": list(found.aliases),
        "digest": found.fingerprint.digest,
    }
    if as_json:
        output.document({**value, "fingerprint": fingerprint})
    else:
        output.facts({**{key: item or "-" for key, item in value.items()}, **fingerprint})
