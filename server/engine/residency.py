"""Which adapters are in the engine's memory, and who uses them: load on first use, evict when idle, never in between.

Owns the engine's adapter ids and places. A request holds a `lease` on its exact version from before it enters the
engine until its last byte; only an adapter without a lease is evicted, so the engine never has to load one inside
a step (where a failure would end it) and never serves a version that was taken away. When every place is leased,
requests wait in the order in which their adapters were first asked for; after `patience` seconds a busy adapter is
drained: it takes no new requests until the waiting adapter had its turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from server.errors import NotReady, ServerError, Unservable

if TYPE_CHECKING:
    from server.engine.host import Session

_FAILURE_KEPT_S = 30.0


class Version(Protocol):
    """What residency needs of an exact version: its name `name@N`."""

    @property
    def ref(self) -> str: ...


V = TypeVar("V", bound=Version)


class Observer(Protocol):
    """Told of every move; the metrics implement it."""

    def loaded(self, ref: str, seconds: float) -> None: ...

    def evicted(self, ref: str) -> None: ...

    def waited(self, seconds: float) -> None: ...


@dataclass(slots=True)
class _Place:
    ref: str
    lora_id: int
    loading: asyncio.Task[None] | None = None
    users: int = 0
    used_at: float = 0.0
    draining: bool = False


@dataclass(slots=True)
class _Want:
    """An adapter in line for a place: since when, and how many requests wait for it."""

    since: float
    requests: int = 0


@dataclass(slots=True)
class Residency(Generic[V]):
    """`places` adapters in memory at once. `files(version)` gives the folder of an exact version (may block)."""

    places: int
    files: Callable[[V], Path]
    observer: Observer
    patience: float = 2.0
    longest_wait: float = 60.0
    _session: Session | None = None
    _held: dict[str, _Place] = field(default_factory=dict)
    _wanting: dict[str, _Want] = field(default_factory=dict)
    _failed: dict[str, tuple[float, ServerError]] = field(default_factory=dict)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    def attach(self, session: Session) -> None:
        """A new engine is empty: forget every place and id."""
        self._session = session
        self._held.clear()
        self._failed.clear()

    @property
    def resident(self) -> list[str]:
        """Versions in memory, least recently used first."""
        return [p.ref for p in sorted(self._held.values(), key=lambda p: p.used_at)]

    @contextlib.asynccontextmanager
    async def lease(self, version: V) -> AsyncIterator[None]:
        """Hold `version` in the engine; raises Unservable (422) or NotReady (503) before anything is generated."""
        place = await self._take(version)
        try:
            if place.loading is not None:
                # Shielded: one client's disconnect must not undo a load that others wait for.
                await asyncio.shield(place.loading)
            if self._held.get(place.ref) is not place:
                raise NotReady(f"the engine was restarted while `{place.ref}` was loaded", retry_after=5.0)
            yield
        finally:
            place.users -= 1
            place.used_at = time.monotonic()
            async with self._changed:
                self._changed.notify_all()

    async def _take(self, version: V) -> _Place:
        """A place with this version in it or on its way, counted as used."""
        ref = version.ref
        failed = self._failed.get(ref)
        if failed and time.monotonic() - failed[0] < _FAILURE_KEPT_S:
            raise failed[1].with_traceback(None)
        place = self._held.get(ref)
        if place is not None and not place.draining:
            place.users += 1
            return place
        began = time.monotonic()
        want = _Want(began)
        async with self._changed:
            try:
                while True:
                    want = self._wanting.setdefault(ref, want)
                    want.requests += 1
                    try:
                        if (place := self._try_take(version)) is not None:
                            break
                        await self._wait(ref, time.monotonic() - began)
                    finally:
                        want.requests -= 1
            finally:
                if place is not None or want.requests == 0:
                    self._wanting.pop(ref, None)
                self._changed.notify_all()
        self.observer.waited(time.monotonic() - began)
        return place

    async def _wait(self, ref: str, waited: float) -> None:
        """Until something moved, at most until the next deadline; drains a busy adapter when patience is over."""
        if waited > self.longest_wait:
            raise NotReady(
                f"`{ref}` got no place in memory within {self.longest_wait:.0f} s: all {self.places} are in use; "
                "try again, or raise --max-cpu-loras",
                param="model",
                retry_after=5.0,
            )
        if waited >= self.patience:
            self._drain_one()
        left = min(self.patience - waited if waited < self.patience else 0.5, self.longest_wait - waited)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.01, left)):
                await self._changed.wait()

    def _try_take(self, version: V) -> _Place | None:
        """Join a place, or fill a free or idle one when this adapter is first in line."""
        ref = version.ref
        place = self._held.get(ref)
        first = next(iter(self._wanting)) == ref if self._wanting else True
        if place is not None:
            if place.draining and not first:
                return None
            place.draining = False
            place.users += 1
            return place
        if not first:
            return None
        session = self._session
        if session is None:
            raise NotReady("the engine is not up", retry_after=5.0)
        victim = None
        if len(self._held) >= self.places:
            idle = [p for p in self._held.values() if p.users == 0 and p.loading is None]
            if not idle:
                return None
            victim = min(idle, key=lambda p: (not p.draining, p.used_at))
            del self._held[victim.ref]
        place = _Place(ref, session.next_adapter_id(), users=1, used_at=time.monotonic())
        self._held[ref] = place
        place.loading = asyncio.create_task(self._load(session, version, place, victim))
        # Nobody may be left to await it (the client is gone); its failure is kept in `_failed`.
        place.loading.add_done_callback(lambda task: task.cancelled() or task.exception())
        return place

    def _drain_one(self) -> None:
        """Close one busy adapter to new requests for each adapter that has waited out its patience."""
        now = time.monotonic()
        late = sum(1 for want in self._wanting.values() if now - want.since >= self.patience)
        draining = sum(1 for p in self._held.values() if p.draining)
        if draining < late:
            busy = [p for p in self._held.values() if not p.draining]
            if busy:
                min(busy, key=lambda p: (p.users, p.used_at)).draining = True

    async def _load(self, session: Session, version: V, place: _Place, victim: _Place | None) -> None:
        """Take the victim out, put the version in; on failure leave no trace of it in the engine."""
        ref = place.ref
        began = time.monotonic()
        try:
            if victim is not None:
                await session.remove_adapter(victim.ref, victim.lora_id)
                self.observer.evicted(victim.ref)
            folder = await asyncio.to_thread(self.files, version)
            await session.add_adapter(ref, place.lora_id, folder)
            place.loading = None
            self.observer.loaded(ref, time.monotonic() - began)
        except BaseException as error:
            if self._held.get(ref) is place:
                del self._held[ref]
            if isinstance(error, Unservable):
                self._failed[ref] = (time.monotonic(), error)
            raise
        finally:
            async with self._changed:
                self._changed.notify_all()
