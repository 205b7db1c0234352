"""The files beside an adapter's weights: its tokenizer, chat template and lineage, compared with the base's.

A tokenizer must be the base's; a chat template may differ and is then applied per request; the lineage file
`onebase.json`, which our training writes, proves by hash on which weights the adapter was trained:

    {"base": "org/name", "base_fingerprint": {...}, "lineage": {...}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapters import fingerprint
from adapters.base import BaseModel
from adapters.errors import Refused
from adapters.fingerprint import Fingerprint
from adapters.folder import LINEAGE
from adapters.manifest import BaseStatus, Evidence, Serving

MAX_TEMPLATE = 256 << 10


@dataclass(frozen=True, slots=True)
class BaseTrace:
    """How sure it is that the adapter was trained on this base, and why."""

    status: BaseStatus
    evidence: Evidence | None
    hint: str | None
    notes: tuple[str, ...] = ()
    lineage: Mapping[str, Any] = field(default_factory=dict)


def check_tokenizer(folder: Path, base: BaseModel) -> None:
    """A tokenizer in the folder must be the base's, by content. No tokenizer is fine."""
    kind = _tokenizer_kind(folder)
    if kind is None or kind != _tokenizer_kind(base.folder):
        return  # none, or one that is stored in another form and cannot be compared
    try:
        found = fingerprint.tokenizer_hash(folder)
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(
            "bad_tokenizer",
            f"{kind} cannot be read: {error}. Remove the tokenizer files or save them again.",
            param=kind,
        ) from None
    if found != base.fingerprint.tokenizer:
        raise Refused(
            "other_tokenizer",
            f"{kind} is not {base.name}'s tokenizer (tokens, ids or merges differ), so the same text would "
            "reach the adapter as other tokens. Train with the base's tokenizer; if it was, remove the "
            "file and publish again.",
            param=kind,
        )


def _tokenizer_kind(folder: Path) -> str | None:
    if (folder / "tokenizer.json").is_file():
        return "tokenizer.json"
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return "vocab.json"
    for name in ("tokenizer.model", "spiece.model"):
        if (folder / name).is_file():
            return name
    return None


def serving(folder: Path, base: BaseModel) -> Serving | None:
    """The folder's chat template, when it has one that differs from the base's."""
    try:
        template = fingerprint.chat_template(folder)
    except (ValueError, KeyError, TypeError):
        template = None
        broken = True
    else:
        broken = template is not None and len(template) > MAX_TEMPLATE
    if broken:
        raise Refused(
            "bad_chat_template",
            "chat_template.jinja or tokenizer_config.json cannot be read, or the template has more than "
            f"{MAX_TEMPLATE} characters. Remove it, and the base's template is used.",
            param="chat_template",
        )
    if template is None or fingerprint.chat_template_hash(template) == base.fingerprint.chat_template:
        return None
    return Serving(chat_template=template)


def trace_base(folder: Path, hint: str | None, base: BaseModel, *, accept_base: bool) -> BaseTrace:
    """Verified by the recorded weights, by a name that means this base, or because someone says so."""
    lineage = _lineage(folder)
    recorded = _recorded(lineage)
    own = lineage.get("lineage")
    story: Mapping[str, Any] = own if isinstance(own, dict) else lineage
    if recorded is not None:
        other = recorded.differences(base.fingerprint)
        if "tokenizer" in other:
            raise Refused(
                "other_tokenizer",
                f"{LINEAGE} says that the adapter was trained with another tokenizer than {base.name}'s.",
                param=LINEAGE,
            )
        if "weights" not in other:
            return BaseTrace("verified", "weights", hint, (), story)
        if not accept_base:
            raise Refused(
                "other_base_weights",
                f"{LINEAGE} says that the adapter was trained on other weights (base `{_name(lineage)}`, "
                f"{recorded.weights}) than {base.name}'s ({base.fingerprint.weights}). Serve it on its own "
                "base; if the two are meant to be used alike, publish with --accept-base.",
                param=LINEAGE,
            )
        note = f"accepted although trained on other weights ({recorded.weights})"
        return BaseTrace("verified", "accepted", hint, (note,), story)
    if accept_base:
        return BaseTrace("verified", "accepted", hint, (), story)
    if hint is not None and _means(hint, base):
        return BaseTrace("verified", "name", hint, (), story)
    says = f"it names `{hint}`" if hint else "it names none"
    note = f"base unverified: {says}; --accept-base settles that it fits {base.name}"
    return BaseTrace("unverified", None, hint, (note,), story)


def _means(hint: str, base: BaseModel) -> bool:
    return hint in base.names or (hint.startswith("/") and Path(hint) == base.folder)


def _lineage(folder: Path) -> dict[str, Any]:
    path = folder / LINEAGE
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise Refused(
            "bad_lineage", f"{LINEAGE} is not a JSON object. Remove it, or save again.", param=LINEAGE
        )
    return data


def _recorded(lineage: Mapping[str, Any]) -> Fingerprint | None:
    base = lineage.get("base")
    found = lineage.get("base_fingerprint")
    if found is None and isinstance(base, dict):
        found = base.get("fingerprint")
    if found is None:
        return None
    try:
        return Fingerprint.from_json(found)
    except (ValueError, AttributeError) as error:
        raise Refused(
            "bad_lineage", f"{LINEAGE}: {error}. Remove it, or save again.", param=LINEAGE
        ) from None


def _name(lineage: Mapping[str, Any]) -> str:
    base = lineage.get("base")
    return str(base.get("name") if isinstance(base, dict) else base)
