"""What each error means to the shell: one table from the error trees to exit codes.

An error's code is that of the nearest class in its own line of ancestors that the table names. The roots of
the trees are not in it on purpose: a new kind of error has to be given its meaning here
(tests/deploy/test_exits.py). Imports the error trees, so the command line loads this only once something has
gone wrong.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from enum import IntEnum

from adapters import errors as adapters
from server import errors as server
from training import errors as training


class Exit(IntEnum):
    """Exit codes of `onebase`; docs and scripts may rely on them."""

    OK = 0
    CUT_OFF = 1  # the reader of the output left (`| head`)
    USAGE = 2  # a wrong argument, setting, reference or configuration
    NOT_FOUND = 3  # no such adapter, version or alias
    CONFLICT = 4  # contradicts what is already there, or asks for something retired
    REFUSED = 5  # an adapter that cannot be served, merged or published as it is
    DATA = 6  # training data that cannot be used
    BASE = 7  # a base model that is missing, broken or does not fit
    STORE = 8  # registry or disk: full, unreadable, damaged
    RUN = 9  # a training run or reference that failed
    START = 10  # the server cannot start
    DENIED = 11  # no key, or one without the right
    UNAVAILABLE = 12  # not reachable or not ready now: the same command may work later
    INTERNAL = 70  # a defect of OneBase
    INTERRUPTED = 130  # Ctrl-C


CODES: Mapping[type[Exception], Exit] = {
    adapters.BadReference: Exit.USAGE,
    adapters.BadValue: Exit.USAGE,
    adapters.NotFound: Exit.NOT_FOUND,
    adapters.Conflict: Exit.CONFLICT,
    adapters.Retired: Exit.CONFLICT,
    adapters.Refused: Exit.REFUSED,
    adapters.SourceNotFound: Exit.NOT_FOUND,
    adapters.SourceUnreachable: Exit.UNAVAILABLE,
    adapters.BaseNotFound: Exit.BASE,
    adapters.BaseUnreachable: Exit.UNAVAILABLE,
    adapters.BaseBroken: Exit.BASE,
    adapters.StoreFull: Exit.STORE,
    adapters.StoreUnreachable: Exit.UNAVAILABLE,
    adapters.StoreCorrupt: Exit.STORE,
    training.ConfigError: Exit.USAGE,
    training.DataError: Exit.DATA,
    training.ModelProblem: Exit.BASE,
    training.RunProblem: Exit.RUN,
    training.NoDiskSpace: Exit.STORE,
    training.RunMismatch: Exit.CONFLICT,
    training.Interrupted: Exit.INTERRUPTED,
    training.MergeRefused: Exit.REFUSED,
    training.PublishRefused: Exit.REFUSED,
    training.ReferenceFailed: Exit.RUN,
    server.SettingsError: Exit.USAGE,
    server.StartError: Exit.START,
    server.BadRequest: Exit.USAGE,
    server.Unauthorized: Exit.DENIED,
    server.Forbidden: Exit.DENIED,
    server.ModelNotFound: Exit.NOT_FOUND,
    server.MethodNotAllowed: Exit.USAGE,
    server.Conflict: Exit.CONFLICT,
    server.BodyTooLarge: Exit.USAGE,
    server.Unservable: Exit.REFUSED,
    server.Overloaded: Exit.UNAVAILABLE,
    server.NotReady: Exit.UNAVAILABLE,
}


def code_for(error: BaseException) -> Exit | None:
    """The exit code of an error that a user can do something about; None for everything else (a defect)."""
    for kind in type(error).__mro__:
        if kind in CODES:
            return CODES[kind]
    return Exit.STORE if isinstance(error, OSError) else None


def message_for(error: BaseException) -> str:
    """The error as one line; an operating system's error gets its file and, where there is one, its mend."""
    if not isinstance(error, OSError) or error.errno is None:
        return " ".join(str(error).split()) or type(error).__name__
    what = f"{error.filename}: {error.strerror}" if error.filename else f"{error.strerror}"
    mends = {
        errno.ENOSPC: "free some space, or choose another place with --home",
        errno.EACCES: "choose a place that this user may use with --home, or change its rights",
        errno.EROFS: "choose a place that can be written with --home",
        errno.ENOENT: "check the path",
    }
    return "; ".join(filter(None, [what, mends.get(error.errno)]))
