"""`onebase train`, `onebase adapters merge`, `onebase base`: what makes models, and from what."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy import local, output
from deploy.commands import options

if TYPE_CHECKING:
    from adapters.manifest import Manifest
    from training.config import PublishConfig, TrainConfig
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
    from training.records import check_files

    where = local.settings(home, store)
    checked = load_config(config, change or [])
    wanted = publishing(checked, publish, source=config)
    check_files(checked.data, data_root=data, config_folder=checked.folder)
    base = local.base(where, checked.model)
    from training.train import run

    result = run(
        checked,
        base,
        output=out or where.home / "runs" / checked.name,
        data_root=data,
        resume=not no_resume,
        progress=not as_json,
    )
    published = None
    if wanted is not None:
        from training.publish import publish as put

        published = put(result, checked.model_copy(update={"publish": wanted}), local.registry(where), base)
    report(result, published, as_json=as_json)


def publishing(checked: TrainConfig, publish: bool | None, *, source: Path) -> PublishConfig | None:
    """What to publish the result as, or None; whatever forbids it is said before hours of training."""
    from adapters.ref import check_alias, check_name
    from training.errors import PublishRefused

    if publish is False or (publish is None and checked.publish is None):
        return None
    if checked.publish is None:
        raise PublishRefused(
            f"{source} has no `publish` section to name the adapter; add --set publish.name={checked.name}",
            param="publish",
        )
    if checked.method != "lora":
        raise PublishRefused(
            f"{source} trains a full model, the registry keeps adapters: add a lora_config, or --no-publish",
            param="publish",
        )
    check_name(checked.publish.name)
    if checked.publish.alias is not None:
        check_alias(checked.publish.alias)
    return checked.publish.model_copy(update={"by": checked.publish.by or options.user()})


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
