"""`onebase adapters ...`: the registry from the command line.

One command an operation of `adapters.registry.Registry`; what they print is a table, lines of facts, or with
`--json` one document. What may be published is decided by `adapters.check`, not here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy import local, output
from deploy.commands import options, records

if TYPE_CHECKING:
    from adapters.manifest import AliasEntry
    from adapters.registry import Registry

app = typer.Typer(help="The registry: publish, list, alias, roll back.")

Name = Annotated[str, typer.Argument(help="Name of the adapter.")]
Version = Annotated[str, typer.Argument(metavar="NAME@N", help="Exactly one version, for example support@3.")]
Revision = Annotated[str | None, typer.Option("--revision", help="Revision of a Hugging Face repository.")]
MaxRank = Annotated[int | None, typer.Option("--max-rank", help="Refuse a larger rank.")]


@app.command()
def publish(
    name: Name,
    source: Annotated[str, typer.Argument(help="A folder that peft saved, or a Hugging Face repository.")],
    base: options.Base = None,
    alias: Annotated[
        str | None, typer.Option("--alias", help="Point this alias at it, for example production.")
    ] = None,
    revision: Revision = None,
    max_rank: MaxRank = None,
    accept_base: options.AcceptBase = False,
    by: options.By = None,
    why: options.Why = "",
    home: options.Home = None,
    store: options.Store = None,
    as_json: options.Json = False,
) -> None:
    """Check an adapter and keep it as a new version."""
    from adapters.sources import fetch_source

    where = local.settings(home, store)
    registry = local.registry(where)
    folder = fetch_source(source, revision=revision, cache=where.home / "cache" / "sources")
    chosen = local.base(where, base)
    before = known_versions(registry, name)
    manifest = registry.publish(
        name,
        folder,
        chosen,
        by=by or options.user(),
        why=why,
        alias=alias,
        accept_base=accept_base,
        max_rank=max_rank,
    )
    if as_json:
        output.document(records.dump(manifest))
        return
    summary = f"{manifest.kind}, rank {records.rank(records.dump(manifest))}, {output.short(manifest.digest)}"
    if manifest.version in before:
        print(f"{manifest.ref} has this content already: {summary}")
    else:
        print(f"{manifest.ref} is in the registry: {summary}, proof {manifest.proof.level}")
    if alias is not None:
        print(f"{name}:{alias} is {manifest.ref}")
    for text in manifest.notes:
        output.note(f"note: {text}")
    if manifest.base.status != "verified":
        output.note(
            f"note: nothing proves that it was trained on {manifest.base.name} (it names "
            f"{manifest.base.hint or 'no base'}); its shapes and tokenizer fit"
        )


def known_versions(registry: Registry, name: str) -> set[int]:
    """The versions of a name that may not exist yet."""
    from adapters.errors import BadReference, UnknownAdapter

    try:
        return {one.version for one in registry.versions(name)}
    except (UnknownAdapter, BadReference):
        return set()


@app.command("list")
def list_(
    name: Annotated[str | None, typer.Argument(help="List the versions of this adapter instead.")] = None,
    home: options.Home = None,
    store: options.Store = None,
    as_json: options.Json = False,
) -> None:
    """List the adapters, or one adapter's versions."""
    registry = local.registry(local.settings(home, store))
    names = registry.names() if name is None else [name]
    shelves = [records.shelf(registry, one) for one in names]
    if as_json:
        output.document({"adapters": shelves} if name is None else shelves[0])
    elif name is None:
        columns = ("name", "newest", "production", "aliases", "base", "rank", "proof", "published")
        empty = "the registry is empty: `onebase adapters publish NAME FOLDER` adds to it"
        output.table(columns, [records.line(one) for one in shelves], empty=empty)
    else:
        heads = ("version", "state", "aliases", "base", "rank", "proof", "digest", "published", "by", "why")
        output.table(heads, list(records.version_lines(shelves[0])), empty="")


@app.command()
def show(
    reference: Annotated[
        str, typer.Argument(metavar="REF", help="name, name@3, name@sha256:... or name:alias.")
    ],
    home: options.Home = None,
    store: options.Store = None,
    as_json: options.Json = False,
) -> None:
    """Show what one version is, and its proof."""
    manifest = local.registry(local.settings(home, store)).resolve(reference)
    if as_json:
        output.document(records.dump(manifest))
        return
    lora = manifest.lora
    output.facts(
        {
            "reference": manifest.ref,
            "digest": manifest.digest,
            "kind": manifest.kind,
            "base": f"{manifest.base.name} ({manifest.base.status})",
            "lora": "-"
            if lora is None
            else f"rank {lora.rank}, alpha {lora.alpha:g}, {lora.parameters:,} parameters",
            "modules": ", ".join(lora.target_modules) if lora is not None else "-",
            "proof": manifest.proof.level,
            "scores": [f"{key} {value}" for key, value in records.flat(manifest.scores)],
            "files": [
                f"{file.path}  {output.size(file.size)}  {file.sha256[:12]}" for file in manifest.files
            ],
            "published": f"{records.when(manifest.at)} UTC by {manifest.by or '-'}",
            "why": manifest.why or "-",
            "notes": manifest.notes,
        }
    )


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(help="A folder that peft saved.")],
    base: options.Base = None,
    max_rank: MaxRank = None,
    accept_base: options.AcceptBase = False,
    home: options.Home = None,
    as_json: options.Json = False,
) -> None:
    """Say whether a folder could be published."""
    from adapters.check import check_folder

    checked = check_folder(
        folder, local.base(local.settings(home), base), max_rank=max_rank, accept_base=accept_base
    )
    value = {
        "rank": checked.rank,
        "alpha": checked.alpha,
        "use_rslora": checked.use_rslora,
        "parameters": checked.parameters,
        "dtype": checked.dtype,
        "target_modules": list(checked.target_modules),
        "base": checked.base_verified,
        "notes": list(checked.notes),
    }
    if as_json:
        output.document({"folder": str(folder), "servable": True, **value})
        return
    print(f"{folder} can be served")
    output.facts(value)


@app.command()
def alias(
    name: Name,
    alias: Annotated[str, typer.Argument(help="The alias, for example production.")],
    version: Annotated[int, typer.Argument(min=1, help="The version it shall mean.")],
    by: options.By = None,
    why: options.Why = "",
    home: options.Home = None,
    store: options.Store = None,
    as_json: options.Json = False,
) -> None:
    """Point an alias at a version."""
    registry = local.registry(local.settings(home, store))
    say_alias(
        name, alias, registry.set_alias(name, alias, version, by=by or options.user(), why=why), as_json
    )


@app.command()
def unalias(
    name: Name,
    alias: Annotated[str, typer.Argument(help="The alias to drop.")],
    by: options.By = None,
    why: options.Why = "",
    home: options.Home = None,
    store: options.Store = None,
    as_json: options.Json = False,
) -> None:
    """Make an alias mean nothing; its history stays."""
    registry = local.registry(local.settings(home, store))
    say_alias(name, alias, registry.drop_alias(name, alias, by=by or options.user(), why=why), as_json)


@app.command()
def rollback(
    name: Name,
    alias: Annotated[str, typer.Option("--alias", help="The alias to roll back.")] = "production",
    by: options.By = None,
    why: options.Why = "",
    home: options.Home = None,
    store: options.Store = None,
    as_json: options.Json = False,
) -> None:
    """Point an alias back at what it meant before."""
    registry = local.registry(local.settings(home, store))
    say_alias(name, alias, registry.rollback(name, alias, by=by or options.user(), why=why), as_json)


@app.command()
def history(
    name: Name,
    alias: Annotated[str, typer.Option("--alias", help="The alias whose history it is.")] = "production",
    home: options.Home = None,
    store: options.Store = None,
    as_json: options.Json = False,
) -> None:
    """Show what an alias has meant, newest last."""
    entries = local.registry(local.settings(home, store)).history(name, alias)
    if as_json:
        output.document({"name": name, "alias": alias, "entries": [records.dump(entry) for entry in entries]})
        return
    rows = [
        (
            one["seq"],
            records.targets(one["targets"]),
            records.when(one["at"]),
            one["by"] or "-",
            one["why"] or "-",
        )
        for one in map(records.dump, entries)
    ]
    output.table(("#", "version", "since (UTC)", "by", "why"), rows, empty="")


@app.command()
def retire(
    version: Version,
    by: options.By = None,
    why: options.Why = "",
    home: options.Home = None,
    store: options.Store = None,
) -> None:
    """Hide a version; its files stay."""
    registry = local.registry(local.settings(home, store))
    name, number = exactly(registry, version)
    registry.retire(name, number, by=by or options.user(), why=why)
    print(f"{name}@{number} is retired; `onebase adapters restore {name}@{number}` brings it back")


@app.command()
def restore(
    version: Version,
    by: options.By = None,
    why: options.Why = "",
    home: options.Home = None,
    store: options.Store = None,
) -> None:
    """Bring a retired version back."""
    registry = local.registry(local.settings(home, store))
    name, number = exactly(registry, version)
    registry.restore(name, number, by=by or options.user(), why=why)
    print(f"{name}@{number} is served again")


def exactly(registry: Registry, text: str) -> tuple[str, int]:
    """The name and number of one version; an alias or a bare name would leave open which one is meant."""
    from adapters.errors import BadValue
    from adapters.ref import parse_ref

    reference = parse_ref(text)
    if reference.version is None:
        known = ", ".join(f"{reference.name}@{item.version}" for item in registry.versions(reference.name))
        raise BadValue(
            f"{text!r} does not name one version; write one of {known or 'its versions'}", param="version"
        )
    return reference.name, reference.version


def say_alias(name: str, alias: str, entry: AliasEntry, as_json: bool) -> None:
    """What an alias means from now on."""
    found = records.dump(entry)
    if as_json:
        output.document({"name": name, "alias": alias, **found})
    elif entry.targets:
        print(f"{name}:{alias} is {name}@{records.targets(found['targets'])}")
    else:
        print(f"{name}:{alias} is dropped; its history stays")
