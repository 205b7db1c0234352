"""How many requests are let in: a bound on those running and on those waiting, refused at the door beyond.

It never reorders: waiting requests enter in the order in which they came. Order between tenants and adapters is
the scheduler's.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator

from server.auth import Principal
from server.errors import NotReady, Overloaded


class Admission:
    """`running` requests at once, `waiting` more in line for at most `max_wait_s` seconds."""

    def __init__(self, *, running: int, waiting: int, max_wait_s: float) -> None:
        self._free = running
        self._limit = waiting
        self._max_wait_s = max_wait_s
        self._line: deque[asyncio.Future[None]] = deque()
        self.closed = False
        self.running = 0

    @property
    def waiting(self) -> int:
        return len(self._line)

    @contextlib.asynccontextmanager
    async def enter(self, principal: Principal) -> AsyncIterator[None]:  # noqa: ARG002 - quotas a tenant will read it
        """Raises Overloaded (429) when the line is full, NotReady (503) at shutdown or after too long a wait."""
        await self._acquire()
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            self._release()

    async def _acquire(self) -> None:
        if self.closed:
            raise NotReady("the server is shutting down; send the request to another one", retry_after=5.0)
        if self._free > 0 and not self._line:
            self._free -= 1
            return
        if len(self._line) >= self._limit:
            raise Overloaded(
                f"{self.running} requests are running and {len(self._line)} waiting, which is the limit; try again "
                "shortly, or raise --max-waiting",
                retry_after=1.0,
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        try:
            async with asyncio.timeout(self._max_wait_s):
                await turn
        except BaseException as error:
            with contextlib.suppress(ValueError):
                self._line.remove(turn)
            if turn.done() and not turn.cancelled():
                self._release()  # the turn came while we were giving up: hand it on
            if isinstance(error, TimeoutError):
                raise NotReady(
                    f"no place within {self._max_wait_s:.0f} s; try again", retry_after=2.0
                ) from None
            raise

    def _release(self) -> None:
        while self._line:
            turn = self._line.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
