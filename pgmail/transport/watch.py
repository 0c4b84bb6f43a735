"""One timer for all the waits of a connection.

A timer armed for each reply would cost more than parsing it. This one is armed for the earliest deadline that
it has met and, when it fires, looks at the present one: mostly that is later, and it sleeps on. A wait thus
ends at its own deadline, to the precision of the event loop's clock, at the price of a few idle wake-ups.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

_PRECISION = 0.001  # seconds: the event loop's clock may be this coarse


class Watch:
    """Calls `expired(seconds)`, with the limit that was passed, when a wait lasts too long."""

    __slots__ = ("_armed_for", "_deadline", "_expired", "_limit", "_loop", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, expired: Callable[[float], None]) -> None:
        self._loop = loop
        self._expired = expired
        self._limit = 0.0
        self._deadline = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._armed_for = math.inf

    @property
    def waiting(self) -> bool:
        """Tell whether a deadline is set."""
        return self._deadline < math.inf

    def wait(self, seconds: float, now: float) -> None:
        """Allow `seconds` from `now`, in the event loop's time; earlier deadlines are forgotten."""
        self._limit = seconds
        self._deadline = deadline = now + seconds
        if deadline < self._armed_for:
            if self._timer is not None:
                self._timer.cancel()
            self._arm()

    def rest(self) -> None:
        """Nothing is waited for."""
        self._deadline = math.inf

    def cancel(self) -> None:
        """End for good."""
        self._deadline = math.inf
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def check(self) -> None:
        """Look whether time is up; what the timer calls."""
        self._timer = None
        self._armed_for = math.inf
        if self._deadline == math.inf:
            return
        if self._deadline - self._loop.time() > _PRECISION:
            self._arm()
            return
        self._deadline = math.inf
        self._expired(self._limit)

    def _arm(self) -> None:
        self._armed_for = self._deadline
        self._timer = self._loop.call_at(self._deadline, self.check)
