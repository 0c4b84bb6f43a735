"""Tries with keys that are none: counted by client, answered later and later, and told.

A key has 256 random bits, so nobody guesses one; what tries cost is look-ups in the database, and what they tell
is that somebody tries. A client may fail 20 times in a row and once every three seconds after that. Beyond, the
answer is 429 with Retry-After, its keys are looked up one at a time, and after each one that is none comes a
pause (`Lane`). One burst of failures is one line in the log and one row in the audit.

Processes tell each other, once a second and only of who failed a few times (`fresh`, `learn`): a client that goes
from one to the next is slowed as if there were one.

What can go wrong: many clients behind one address, of which one has a key that expired. So a valid key always
works, also from an address whose tries are slowed. The memory is bounded: of too many addresses the oldest are
forgotten.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import structlog

from pgmail.clock import Clock
from pgmail.errors import Refused

log = structlog.get_logger()

FREE = 20  # failed tries in a row
EVERY_SECONDS = 3.0  # in which one more is forgiven
MOST = 40  # so many are remembered: the longest wait is (MOST - FREE + 1) times EVERY_SECONDS
MAX_CLIENTS = 10_000
MAX_WAITING = 32  # look-ups of slowed clients; more are turned away unlooked
PAUSE_SECONDS = 0.05
TOLD_FROM = 3  # failures not forgiven; with one more, other processes hear of a client
MOST_TOLD = 500  # clients at a time
MAX_BURSTS = 10  # that wait to be recorded; more are in the log only


class Burst:
    """Failed tries of one client: `level` of them are not forgiven yet, `tries` there were since it was zero."""

    __slots__ = ("at", "fresh", "level", "origin", "told", "tries")

    def __init__(self, origin: str, at: float) -> None:
        self.origin = origin
        self.at = at
        self.level = 0.0
        self.tries = 0
        self.fresh = 0  # tries that other processes have not heard of
        self.told = False


class Guesses:
    """Failed tries by client."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._clients: dict[str, Burst] = {}
        self._bursts: list[Burst] = []
        self._untold: dict[str, Burst] = {}

    def __len__(self) -> int:
        """Return how many clients are remembered."""
        return len(self._clients)

    def wait(self, client: str) -> float:
        """Return after how many seconds a client may fail again; 0 for now."""
        found = self._clients.get(client)
        if found is None:
            return 0.0
        self._forgive(found)
        return max(0.0, (found.level - FREE + 1) * EVERY_SECONDS) if found.level >= FREE else 0.0

    def failed(self, client: str) -> None:
        """Count a try that failed; raises Refused (429) if it was one too many."""
        found = self._clients.pop(client, None) or Burst(client, self._clock.monotonic())
        self._forgive(found)
        over = found.level >= FREE
        found.level = min(found.level + 1, MOST)
        found.tries += 1
        found.fresh += 1
        if found.level > TOLD_FROM:
            self._untold[client] = found
        if len(self._clients) >= MAX_CLIENTS:
            del self._clients[next(iter(self._clients))]
        self._clients[client] = found  # at the end: who failed last is forgotten last
        if over:
            self._tell(found)
            raise too_many(self.wait(client))

    def fresh(self) -> dict[str, int]:
        """Return the tries, by client, that other processes should hear of, and count them as told."""
        found = {}
        for client in list(self._untold)[:MOST_TOLD]:
            burst = self._untold.pop(client)
            found[client], burst.fresh = burst.fresh, 0
        if len(self._untold) > MAX_CLIENTS:
            self._untold.clear()
        return found

    def learn(self, levels: Mapping[str, float]) -> None:
        """Take over what all processes together have seen, where that is more."""
        for client, level in levels.items():
            found = self._clients.get(client)
            if found is not None:
                self._forgive(found)
                found.level = max(found.level, min(level, MOST))

    def bursts(self) -> list[Burst]:
        """Return the bursts that were not recorded yet, and forget them."""
        found, self._bursts = self._bursts, []
        return found

    def _forgive(self, found: Burst) -> None:
        now = self._clock.monotonic()
        found.level = max(0.0, found.level - (now - found.at) / EVERY_SECONDS)
        found.at = now
        if not found.level:
            found.tries, found.told = 0, False

    def _tell(self, found: Burst) -> None:
        if found.told:
            return
        found.told = True
        log.warning("keys that are none are being tried; slowed", origin=found.origin, tries=found.tries)
        if len(self._bursts) < MAX_BURSTS:
            self._bursts.append(found)


class Lane:
    """Where the look-ups of slowed clients go, one at a time. For one event loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._turn = asyncio.Lock()
        self._waiting = 0

    @asynccontextmanager
    async def turn(self, wait: float) -> AsyncIterator[None]:
        """Wait for one's turn. Raises Refused (429) at once if too many do; `wait` is then said."""
        if self._waiting >= MAX_WAITING:
            raise too_many(wait)
        self._waiting += 1
        try:
            async with self._turn:
                yield
        finally:
            self._waiting -= 1

    async def pause(self) -> None:
        """Keep the lane for a moment: somebody in it had no key."""
        await self._clock.sleep(PAUSE_SECONDS)


def too_many(wait: float) -> Refused:
    """Return the error of who failed too often: 429, with the seconds after which to try again."""
    fault = Refused("too_many_tries", "", "too many requests with API keys that are none; wait", 429)
    fault.retry_after = wait
    return fault
