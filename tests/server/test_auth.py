"""Who is let in."""

from __future__ import annotations

import pytest

from server.auth import OPEN_PATHS, Authenticator, Principal
from server.errors import Unauthorized

CHAT = "/v1/chat/completions"
Header = tuple[bytes, bytes]


def test_without_keys_everybody_is_let_in() -> None:
    assert Authenticator(()).authenticate(CHAT, []).tenant == "default"
    assert Authenticator(()).authenticate(CHAT, [(b"authorization", b"Bearer anything")]) == Principal()


@pytest.mark.parametrize(
    "header",
    [
        (b"authorization", b"Bearer one"),
        (b"authorization", b"bearer one"),
        (b"authorization", b"BEARER   two "),
        (b"x-api-key", b"two"),
    ],
)
def test_either_header_and_any_key(header: Header) -> None:
    assert Authenticator(("one", "two")).authenticate(CHAT, [(b"host", b"h"), header]) == Principal()


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"Bearer ")],
        [(b"authorization", b"Bearer")],
        [(b"authorization", b"Basic one")],
        [(b"authorization", b"Bearer on")],
        [(b"authorization", b"Bearer one1")],
        [(b"authorization", b"Bearer \xff\xfe")],
        [(b"x-api-key", b"")],
        [(b"x-api-key", b"ONE")],
        [(b"api-key", b"one")],
    ],
)
def test_everything_else_is_401(headers: list[Header]) -> None:
    with pytest.raises(Unauthorized) as refused:
        Authenticator(("one", "two")).authenticate(CHAT, headers)
    assert refused.value.status == 401
    assert refused.value.param == "authorization"


def test_keys_need_not_be_ascii() -> None:
    assert (
        Authenticator(("schlüssel",)).authenticate(CHAT, [(b"x-api-key", "schlüssel".encode())])
        == Principal()
    )


@pytest.mark.parametrize("path", sorted(OPEN_PATHS))
def test_probes_need_no_key(path: str) -> None:
    assert Authenticator(("one",)).authenticate(path, []) == Principal()


@pytest.mark.parametrize("path", ["/health/", "/livez/x", "/metrics2", "/", "/v1/models"])
def test_nothing_near_a_probe_is_open(path: str) -> None:
    with pytest.raises(Unauthorized):
        Authenticator(("one",)).authenticate(path, [])
