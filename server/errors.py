"""What the server refuses, and how a refusal looks on the wire.

    ServerError                    .status .code .param .retry_after
     |- SettingsError              at start: a setting that is wrong (CLI only)
     |- StartError                 at start: port taken, no memory, engine flags refused
     |- BadRequest          400    body is not JSON, a field of the wrong type, two different adapters named
     |- Unauthorized        401    no key, or an unknown one
     |- Forbidden           403    a known key without the right
     |- ModelNotFound       404    no such model; names the nearest
     |- MethodNotAllowed    405    a route of ours, asked by the wrong method
     |- Conflict            409    contradicts what is already there
     |- BodyTooLarge        413
     |- Unservable          422    the adapter exists and cannot be served here
     |- Overloaded          429    queue full
     |- NotReady            503    engine starting, restarting or out of places

Errors of the registry become one of these in `from_adapter_error`; nothing else maps errors to statuses.
"""

from __future__ import annotations

from typing import Any

from adapters import errors as registry


class ServerError(Exception):
    """Root: everything that the server refuses on purpose."""

    status = 500
    code = "server_error"
    type = "server_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after


class SettingsError(ServerError):
    """A setting that is unknown or has a wrong value."""

    code = "bad_setting"

    def __init__(self, key: str, value: Any, why: str) -> None:
        shown = "" if value is None else f" = {value!r}"
        super().__init__(f"{key}{shown}: {why}; `onebase config` lists every setting", param=key)


class StartError(ServerError):
    """The server cannot start; the message says what to change."""

    code = "cannot_start"


class BadRequest(ServerError):
    status = 400
    code = "invalid_value"
    type = "invalid_request_error"


class Unauthorized(ServerError):
    status = 401
    code = "invalid_api_key"
    type = "invalid_request_error"


class Forbidden(ServerError):
    status = 403
    code = "insufficient_permissions"
    type = "invalid_request_error"


class ModelNotFound(ServerError):
    status = 404
    code = "model_not_found"
    type = "invalid_request_error"


class MethodNotAllowed(ServerError):
    status = 405
    code = "method_not_allowed"
    type = "invalid_request_error"


class Conflict(ServerError):
    status = 409
    code = "conflict"
    type = "invalid_request_error"


class BodyTooLarge(ServerError):
    status = 413
    code = "request_too_large"
    type = "invalid_request_error"


class Unservable(ServerError):
    status = 422
    code = "adapter_unservable"
    type = "invalid_request_error"


class Overloaded(ServerError):
    status = 429
    code = "rate_limit_exceeded"
    type = "rate_limit_error"


class NotReady(ServerError):
    status = 503
    code = "not_ready"
    type = "server_error"


# The HTTP face of every registry error, subclasses included; tests/server/test_errors.py holds it complete.
FACES: tuple[tuple[type[registry.AdapterError], type[ServerError]], ...] = (
    (registry.BadReference, BadRequest),
    (registry.BadValue, BadRequest),
    (registry.NotFound, ModelNotFound),
    (registry.Retired, ModelNotFound),
    (registry.Conflict, Conflict),
    (registry.Refused, Unservable),
    (registry.SourceUnreachable, NotReady),
    (registry.BaseUnreachable, NotReady),
    (registry.BaseProblem, ServerError),
    (registry.StoreProblem, NotReady),
)


def from_adapter_error(error: registry.AdapterError, *, param: str = "model") -> ServerError:
    """The HTTP face of a registry error: same message, the status that the design gives it."""
    for kind, face in FACES:
        if isinstance(error, kind):
            mapped = face(str(error), param=param)
            if face is Unservable:
                mapped.code = error.code
            if face is NotReady:
                mapped.retry_after = 5.0
            return mapped
    return ServerError(str(error), param=param)


def internal() -> ServerError:
    """What a client is told of an error that nobody foresaw."""
    return ServerError("internal error; the server's log has it under this request id")


def body(error: ServerError, request_id: str, *, anthropic: bool = False) -> dict[str, Any]:
    """The JSON body: OpenAI's shape, or Anthropic's on its own routes."""
    if anthropic:
        kinds = {
            400: "invalid_request_error",
            401: "authentication_error",
            403: "permission_error",
            404: "not_found_error",
            413: "request_too_large",
            429: "rate_limit_error",
            503: "overloaded_error",
        }
        kind = kinds.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": error.message}, "request_id": request_id}
    return {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
            "request_id": request_id,
        }
    }


def headers(error: ServerError, request_id: str) -> list[tuple[bytes, bytes]]:
    """Response headers: the request id, Retry-After, and `x-should-retry: false` where a retry is pointless."""
    found = [(b"x-request-id", request_id.encode("latin-1", "replace"))]
    if error.retry_after is not None:
        found.append((b"retry-after", str(max(1, round(error.retry_after))).encode()))
    elif error.status in (409, 422, 429):
        found.append((b"x-should-retry", b"false"))
    return found
