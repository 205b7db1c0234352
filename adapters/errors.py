"""Every error of `adapters`, as one tree.

    AdapterError
    ├── BadReference          the text is not `name`, `name@N`, `name@sha256:...` or `name:alias`
    ├── BadValue              another argument cannot be used (an alias, a source, a serving block)
    ├── NotFound
    │   ├── UnknownAdapter    no such name in the registry
    │   ├── UnknownVersion    the name exists, this version does not
    │   ├── UnknownAlias      the name exists, this alias does not
    │   └── SourceNotFound    nothing to import an adapter from
    ├── Conflict              the request contradicts what is already there
    ├── Retired               the version exists, but has been hidden
    ├── Refused               an adapter folder that cannot be served; `reason` is one code per cause
    ├── SourceUnreachable     the source of an adapter cannot be fetched now
    ├── BaseProblem
    │   ├── BaseNotFound      nothing by that name
    │   ├── BaseUnreachable   it may exist, but cannot be fetched now
    │   └── BaseBroken        it is there, and cannot be used
    └── StoreProblem
        ├── StoreFull         no space left
        ├── StoreUnreachable  the store cannot be read or written
        └── StoreCorrupt      a stored object is missing or is not what its name says

Each carries `code` (stable, snake_case), `param` (the field that is to blame, or None) and a message
that names the field, the value and the mend. Which HTTP status or exit code that becomes is not known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class AdapterError(Exception):
    """Root of the tree; never raised itself."""

    code: str = "adapter_error"
    param: str | None = None

    def __init__(self, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code
        if param is not None:
            self.param = param

    @property
    def message(self) -> str:
        return str(self.args[0])

    def __reduce__(self) -> tuple[Any, ...]:
        # Subclasses take data, not the message; errors must still cross a process boundary.
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(cls: type[AdapterError], args: tuple[Any, ...], state: dict[str, Any]) -> AdapterError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(state)
    return error


class BadReference(AdapterError):
    code = "bad_reference"
    param = "model"

    def __init__(self, text: object, problem: str) -> None:
        shown = repr(text)
        shown = shown if len(shown) <= 120 else shown[:117] + "..."
        super().__init__(
            f"{shown} is not a reference to an adapter: {problem}. "
            "Write `name`, `name@3`, `name@sha256:<64 hex digits>` or `name:alias`."
        )


class BadValue(AdapterError):
    code = "bad_value"


class NotFound(AdapterError):
    code = "not_found"
    param = "model"


class UnknownAdapter(NotFound):
    code = "unknown_adapter"

    def __init__(self, name: str, nearest: Sequence[str] = ()) -> None:
        self.name = name
        self.nearest = list(nearest)
        if self.nearest:
            hint = "Did you mean " + " or ".join(f"`{other}`" for other in self.nearest) + "?"
        else:
            hint = "`onebase adapters list` shows the names there are."
        super().__init__(f"There is no adapter named `{name}`. {hint}")


class UnknownVersion(NotFound):
    code = "unknown_version"

    def __init__(self, name: str, version: int | str, known: Sequence[int] = ()) -> None:
        self.name = name
        self.version = version
        self.known = list(known)
        shown = ", ".join(str(number) for number in self.known[-8:]) or "none"
        if len(self.known) > 8:
            shown = "..., " + shown
        super().__init__(f"`{name}` has no version {version}. Its versions: {shown}.")


class UnknownAlias(NotFound):
    code = "unknown_alias"

    def __init__(self, name: str, alias: str, known: Sequence[str] = ()) -> None:
        self.name = name
        self.alias = alias
        self.known = list(known)
        shown = ", ".join(f"`{other}`" for other in self.known) or "none"
        super().__init__(f"`{name}` has no alias `{alias}`. Its aliases: {shown}.")


class SourceNotFound(NotFound):
    code = "source_not_found"
    param = "source"


class SourceUnreachable(AdapterError):
    code = "source_unreachable"
    param = "source"


class Conflict(AdapterError):
    code = "conflict"


class Retired(AdapterError):
    code = "retired"
    param = "model"

    def __init__(self, name: str, version: int | None, why: str = "") -> None:
        self.name = name
        self.version = version
        what = f"`{name}@{version}` is retired" if version else f"every version of `{name}` is retired"
        because = f" ({why})" if why else ""
        mend = f"`onebase adapters restore {name}@{version or 'N'}` brings it back."
        super().__init__(f"{what[0].upper()}{what[1:]}{because}. {mend}")


class Refused(AdapterError):
    """The folder cannot be served as it is. `reason` (= `code`) is one of `check.REASONS`."""

    def __init__(self, reason: str, message: str, *, param: str | None = None) -> None:
        self.reason = reason
        super().__init__(message, code=reason, param=param)


class BaseProblem(AdapterError):
    code = "base_problem"
    param = "base"


class BaseNotFound(BaseProblem):
    code = "base_not_found"


class BaseUnreachable(BaseProblem):
    code = "base_unreachable"


class BaseBroken(BaseProblem):
    code = "base_broken"


class StoreProblem(AdapterError):
    code = "store_problem"


class StoreFull(StoreProblem):
    code = "store_full"


class StoreUnreachable(StoreProblem):
    code = "store_unreachable"


class StoreCorrupt(StoreProblem):
    code = "store_corrupt"

    def __init__(self, key: str, problem: str, mend: str = "") -> None:
        self.key = key
        super().__init__(f"The registry's object `{key}` {problem}. {mend}".rstrip())
