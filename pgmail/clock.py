"""Time as a thing that is handed in: what waits, expires or times out asks a `Clock`.

`SystemClock` is the machine's. `ManualClock` is for tests: it stands still until moved, and moving it wakes
sleepers in the order of their moments.

What can go wrong: wall time jumps (NTP, a suspended laptop), so intervals are measured with `monotonic`,
never with the difference of two `now`. The database's time (`pgmail.now()`) decides what is due; this one
only paces Python.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

_TURNS = 10  # of the event loop that woken code may take before the clock moves on


class Clock(Protocol):
    """What pgmail asks of time."""

    def now(self) -> datetime:
        """Return the wall time, aware, in UTC."""
        ...

    def monotonic(self) -> float:
        """Return seconds since some fixed moment; never goes back."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`; at once (but after a turn of the loop) if they are not above zero."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """Return the wall time, aware, in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Return `time.monotonic()`, seconds."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Sleep on the event loop."""
        await asyncio.sleep(max(seconds, 0))


class ManualClock:
    """A clock that moves only by `advance`; for one event loop."""

    def __init__(self, start: datetime | None = None) -> None:
        self._start = start or datetime(2026, 1, 1, tzinfo=UTC)
        if self._start.tzinfo is None:
            raise ValueError("the start of a clock must be aware")
        self._passed = 0.0
        self._jumped = timedelta()
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._slept = asyncio.Event()

    def now(self) -> datetime:
        """Return the wall time, aware, in UTC."""
        return (self._start + timedelta(seconds=self._passed) + self._jumped).astimezone(UTC)

    def monotonic(self) -> float:
        """Return the seconds advanced so far."""
        return self._passed

    @property
    def sleepers(self) -> int:
        """How many are asleep."""
        return sum(not future.done() for _, _, future in self._sleepers)

    async def sleep(self, seconds: float) -> None:
        """Return when the clock was advanced by `seconds`."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._passed + seconds, next(self._order), future))
        self._slept.set()
        await future

    async def wait_for_sleepers(self, count: int = 1) -> None:
        """Return when at least `count` are asleep, so that a test advances no clock nobody waits on."""
        while self.sleepers < count:
            self._slept.clear()
            await self._slept.wait()

    async def advance(self, seconds: float) -> None:
        """Move on by `seconds`, stopping at each sleeper's moment on the way so that it sees its own time."""
        if seconds < 0:
            raise ValueError("a clock does not go back; use jump() for the wall time alone")
        end = self._passed + seconds
        while self._sleepers and self._sleepers[0][0] <= end:
            moment, _, future = heapq.heappop(self._sleepers)
            self._passed = max(self._passed, moment)
            if not future.done():
                future.set_result(None)
                await self._settle()
        self._passed = end
        await self._settle()

    def jump(self, seconds: float) -> None:
        """Move the wall time alone, either way, as NTP does; nobody wakes."""
        self._jumped += timedelta(seconds=seconds)

    async def _settle(self) -> None:
        """Let woken code run until it sleeps again or waits for something else."""
        for _ in range(_TURNS):
            await asyncio.sleep(0)
