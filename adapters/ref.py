"""The one grammar by which people and clients name an adapter.

    name                 its alias `production`, else its newest version
    name@3               exactly version 3
    name@sha256:<hex>    exactly this content
    name:alias           read as a container tag; an alias is never a number

`name` keeps its case and may have a tenant in front (`tenant/name`), so that Hugging Face ids fit.
This module knows nothing of what exists: it reads text.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from adapters.errors import BadReference, BadValue

SEGMENT = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
ALIAS = r"[A-Za-z_][A-Za-z0-9._-]{0,63}"
MAX_VERSION = 999_999

_NAME = re.compile(rf"(?:{SEGMENT}/)?{SEGMENT}")
_ALIAS = re.compile(ALIAS)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_REF = re.compile(
    rf"(?P<name>(?:{SEGMENT}/)?{SEGMENT})"
    rf"(?:@(?P<version>[1-9][0-9]{{0,5}})|@(?P<digest>sha256:[0-9a-f]{{64}})|:(?P<alias>{ALIAS}))?"
)
_NAME_RULE = (
    "a name starts with a letter or digit, goes on with letters, digits, `.`, `_` or `-`, "
    "has at most 96 of them, and may have one tenant before it (`tenant/name`)"
)


@dataclass(frozen=True, slots=True)
class Ref:
    """A parsed reference; at most one of `version`, `digest` ("sha256:...") and `alias` is set."""

    name: str
    version: int | None = None
    digest: str | None = None
    alias: str | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise BadReference(self.name, _NAME_RULE)
        if sum(part is not None for part in (self.version, self.digest, self.alias)) > 1:
            raise BadReference(self.name, "only one of version, digest and alias can be given")
        if self.version is not None and not 1 <= self.version <= MAX_VERSION:
            raise BadReference(f"{self.name}@{self.version}", f"versions run from 1 to {MAX_VERSION}")
        if self.digest is not None and not _DIGEST.fullmatch(self.digest):
            raise BadReference(
                f"{self.name}@{self.digest}", "a digest is sha256: and 64 lower-case hex digits"
            )
        if self.alias is not None and not _ALIAS.fullmatch(self.alias):
            raise BadReference(f"{self.name}:{self.alias}", _alias_rule(self.alias))

    def __str__(self) -> str:
        if self.version is not None:
            return f"{self.name}@{self.version}"
        if self.digest is not None:
            return f"{self.name}@{self.digest}"
        if self.alias is not None:
            return f"{self.name}:{self.alias}"
        return self.name


def parse_ref(text: str) -> Ref:
    """Read one reference; BadReference says what is wrong with it and how it is written."""
    if not isinstance(text, str):
        raise BadReference(text, "it is not text")
    return _parse(text)


@lru_cache(maxsize=4096)
def _parse(text: str) -> Ref:
    match = _REF.fullmatch(text)
    if match is None:
        raise BadReference(text, _problem(text))
    version = match["version"]
    return Ref(match["name"], int(version) if version else None, match["digest"], match["alias"])


def check_name(name: str) -> str:
    """`name` itself when it may name an adapter."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        shown = repr(name)[:120]
        raise BadValue(f"name {shown} cannot name an adapter: {_NAME_RULE}.", code="bad_name", param="name")
    return name


def check_alias(alias: str) -> str:
    """`alias` itself when it may be an alias."""
    if not isinstance(alias, str) or not _ALIAS.fullmatch(alias):
        shown = repr(alias)[:120]
        raise BadValue(
            f"alias {shown} is not possible: {_alias_rule(alias)}.", code="bad_alias", param="alias"
        )
    return alias


def nearest(name: str, candidates: Iterable[str], limit: int = 3) -> list[str]:
    """The candidates most like `name`, best first, case ignored; bounded work whatever a client sends."""
    if len(name) > 200:
        return []
    folded: dict[str, str] = {}
    for candidate in candidates:
        # A name whose length differs this much can never reach the cut-off below.
        if abs(len(candidate) - len(name)) <= max(len(name), 4):
            folded.setdefault(candidate.lower(), candidate)
        if len(folded) >= 2000:
            break
    found = difflib.get_close_matches(name.lower(), folded, n=limit, cutoff=0.6)
    return [folded[one] for one in found]


def _alias_rule(alias: object) -> str:
    if isinstance(alias, str) and alias[:1].isdigit():
        return "an alias is never a number and does not start with a digit; a version is written name@3"
    return "an alias starts with a letter or `_`, and has at most 64 letters, digits, `.`, `_` or `-`"


def _problem(text: str) -> str:
    """What is wrong with a text that does not parse; only for the message."""
    if not text:
        return "it is empty"
    if text != text.strip():
        return "it has spaces around it"
    if "@" in text:
        name, _, version = text.partition("@")
        if not _NAME.fullmatch(name):
            return _NAME_RULE
        if version.lower().startswith("sha256:"):
            return "a digest is sha256: and 64 lower-case hex digits"
        if version.isascii() and version.isdigit():
            return f"versions run from 1 to {MAX_VERSION}, written without leading zeros"
        return "after `@` comes a version number or a digest (an alias is written name:alias)"
    name, colon, alias = text.partition(":")
    if colon and _NAME.fullmatch(name):
        return _alias_rule(alias)
    return _NAME_RULE
