"""Who is calling. With no key configured everybody is `anonymous`; rights per key will live in `Principal`."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from dataclasses import dataclass

from server.errors import Unauthorized

Headers = Iterable[tuple[bytes, bytes]]

# Answered without a key: probes and metrics, as every orchestrator expects.
OPEN_PATHS = frozenset({"/livez", "/readyz", "/health", "/ping", "/metrics"})


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller. `tenant` orders work in the scheduler; rights and quotas per key hang here when they come."""

    tenant: str = "default"


class Authenticator:
    """Accepts `Authorization: Bearer KEY` (OpenAI) and `x-api-key: KEY` (Anthropic)."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._keys = tuple(key.encode() for key in keys)

    def authenticate(self, path: str, headers: Headers) -> Principal:
        """Raises Unauthorized (401) when keys are configured and none of them was sent."""
        if not self._keys or path in OPEN_PATHS:
            return Principal()
        sent = _sent_key(headers)
        if sent is None:
            raise Unauthorized("no API key: send `Authorization: Bearer KEY`", param="authorization")
        # Compared with every key in constant time, so that timing tells nothing of a key's beginning.
        matches = [hmac.compare_digest(sent, key) for key in self._keys]
        if not any(matches):
            raise Unauthorized("unknown API key; ask the server's owner for one", param="authorization")
        return Principal()


def _sent_key(headers: Headers) -> bytes | None:
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return value[7:].strip()
        if name == b"x-api-key":
            return value.strip()
    return None
