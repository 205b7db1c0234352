"""Records of the registry as people read them: cells of tables, half lines.

Works on records as JSON (`dump`), so that what `--json` prints and what a table shows are the same facts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from deploy import output

if TYPE_CHECKING:
    from adapters.manifest import AliasEntry, Manifest
    from adapters.registry import Registry


def shelf(registry: Registry, name: str) -> dict[str, Any]:
    """A name with all that the registry has under it."""
    retired = registry.retired_versions(name)
    versions = [{**dump(one), "retired": one.version in retired} for one in registry.versions(name)]
    aliases = {alias: dump(entry)["targets"] for alias, entry in registry.aliases(name).items()}
    return {"name": name, "versions": versions, "aliases": aliases}


def line(shelf: dict[str, Any]) -> tuple[object, ...]:
    """A name in the list of names: what it means now, and what else leads to it."""
    shown = [one for one in shelf["versions"] if not one["retired"]]
    aliases = {alias: targets(found) for alias, found in shelf["aliases"].items()}
    production = aliases.pop("production", "-")
    others = ", ".join(f"{alias}={target}" for alias, target in aliases.items()) or "-"
    if not shown:
        return (shelf["name"], "retired", production, others, "-", "-", "-", "-")
    newest = shown[-1]
    facts = (newest["base"]["name"], rank(newest), newest["proof"]["level"], when(newest["at"]))
    return (shelf["name"], newest["version"], production, others, *facts)


def version_lines(shelf: dict[str, Any]) -> Iterable[tuple[object, ...]]:
    """A name's versions, one line each."""
    for one in shelf["versions"]:
        leading = [
            alias
            for alias, found in shelf["aliases"].items()
            if any(target["version"] == one["version"] for target in found)
        ]
        state = "retired" if one["retired"] else "served"
        facts = (one["base"]["name"], rank(one), one["proof"]["level"], output.short(one["digest"]))
        yield (
            one["version"],
            state,
            ", ".join(leading) or "-",
            *facts,
            when(one["at"]),
            one["by"] or "-",
            one["why"] or "-",
        )


def targets(found: list[dict[str, Any]]) -> str:
    """The version an alias means, or its versions with their shares."""
    if len(found) == 1:
        return str(found[0]["version"])
    return " ".join(f"{target['version']}:{target['weight']:g}" for target in found) or "none"


def rank(manifest: dict[str, Any]) -> str:
    """The rank of a LoRA version."""
    return str(manifest["lora"]["rank"]) if manifest["lora"] else "-"


def when(at: str) -> str:
    """A time of the registry (ISO 8601, UTC) to the minute."""
    return at[:16].replace("T", " ")


def flat(scores: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, object]]:
    """Nested scores as dotted names."""
    for key, value in scores.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def dump(record: Manifest | AliasEntry) -> dict[str, Any]:
    """A record as the registry keeps it."""
    found: dict[str, Any] = json.loads(record.to_bytes())
    return found
