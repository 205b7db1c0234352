"""Every error, the registry's and ours, has one status; a new one without fails here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from adapters import errors as registry
from server import errors
from server.errors import ServerError

STATUS = {
    "AdapterError": 500,
    "BadReference": 400,
    "BadValue": 400,
    "NotFound": 404,
    "UnknownAdapter": 404,
    "UnknownVersion": 404,
    "UnknownAlias": 404,
    "SourceNotFound": 404,
    "SourceUnreachable": 503,
    "Conflict": 409,
    "Retired": 404,
    "Refused": 422,
    "BaseProblem": 500,
    "BaseNotFound": 500,
    "BaseUnreachable": 503,
    "BaseBroken": 500,
    "StoreProblem": 503,
    "StoreFull": 503,
    "StoreUnreachable": 503,
    "StoreCorrupt": 503,
}
OURS = {
    "ServerError": 500,
    "SettingsError": 500,
    "StartError": 500,
    "BadRequest": 400,
    "Unauthorized": 401,
    "Forbidden": 403,
    "ModelNotFound": 404,
    "MethodNotAllowed": 405,
    "Conflict": 409,
    "BodyTooLarge": 413,
    "Unservable": 422,
    "Overloaded": 429,
    "NotReady": 503,
}
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "BadReference": ("x", "why"),
    "UnknownAdapter": ("x", ["y"]),
    "UnknownVersion": ("x", 3),
    "UnknownAlias": ("x", "y"),
    "Retired": ("x", 1),
    "Refused": ("wrong_shape", "says why"),
    "StoreCorrupt": ("key", "is damaged"),
}


def tree(root: type[Exception]) -> Iterator[type[Any]]:
    yield root
    for kind in root.__subclasses__():
        yield from tree(kind)


def test_the_registrys_tree_is_mapped_whole() -> None:
    assert {kind.__name__ for kind in tree(registry.AdapterError)} == set(STATUS)
    faces = tuple(kind for kind, _ in errors.FACES)
    for kind in tree(registry.AdapterError):
        assert kind is registry.AdapterError or issubclass(kind, faces), f"{kind.__name__} has no face"


@pytest.mark.parametrize("kind", list(tree(registry.AdapterError)), ids=lambda kind: kind.__name__)
def test_each_registry_error_has_its_status_and_keeps_its_message(kind: type[registry.AdapterError]) -> None:
    error = kind(*ARGUMENTS.get(kind.__name__, ("the message",)))
    face = errors.from_adapter_error(error, param="adapter_id")
    assert face.status == STATUS[kind.__name__]
    assert face.message == error.message
    assert face.param == "adapter_id"
    assert (face.status == 503) == (face.retry_after is not None)
    if isinstance(error, registry.Refused):
        assert face.code == "wrong_shape"


def test_ours_has_one_status_each() -> None:
    assert {kind.__name__: kind.status for kind in tree(ServerError)} == OURS
    assert all(kind.code and kind.type for kind in tree(ServerError))


def test_the_drawing_names_every_class() -> None:
    for module, root in ((errors, ServerError), (registry, registry.AdapterError)):
        for kind in tree(root):
            assert kind.__name__ in (module.__doc__ or "")


@pytest.mark.parametrize("kind", [k for k in tree(ServerError) if k.__name__ != "SettingsError"])
def test_both_bodies(kind: type[ServerError]) -> None:
    error = kind("what is wrong", param="model")
    assert errors.body(error, "id-1") == {
        "error": {
            "message": "what is wrong",
            "type": kind.type,
            "param": "model",
            "code": kind.code,
            "request_id": "id-1",
        }
    }
    anthropic = errors.body(error, "id-1", anthropic=True)
    assert anthropic["type"] == "error"
    assert anthropic["request_id"] == "id-1"
    assert anthropic["error"]["type"].endswith("_error") or kind.status == 413


def test_headers_say_when_to_come_back_or_not_to() -> None:
    def sent(error: ServerError) -> dict[bytes, bytes]:
        return dict(errors.headers(error, "id-1"))

    assert sent(errors.Overloaded("x", retry_after=0.2)) == {b"x-request-id": b"id-1", b"retry-after": b"1"}
    assert sent(errors.NotReady("x", retry_after=4.6))[b"retry-after"] == b"5"
    for kind in (errors.Conflict, errors.Unservable, errors.Overloaded):
        assert sent(kind("x"))[b"x-should-retry"] == b"false"
    assert sent(errors.BadRequest("x")) == {b"x-request-id": b"id-1"}


def test_a_setting_is_named_with_its_value_and_where_to_look() -> None:
    assert str(errors.SettingsError("port", "x", "must be a number")) == (
        "port = 'x': must be a number; `onebase config` lists every setting"
    )
