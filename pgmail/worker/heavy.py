"""Places in processes apart for mail whose template takes long, shared between tenants.

A few are made at a time, and a few more wait here for their turn, each with its slot; no tenant has more than half
of that room. Were there no end to it, all slots would stand there, and other mail would wait for what strangers
write. What finds no room goes back to the queue for so long as those of its tenant that were put off before it
will take: so a stranger's ten thousand keep nobody but himself.

What can go wrong: other workers make mail that was put off here. It counts as waiting until there are too many
to remember; waits are longer than need be, by minutes at most.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from uuid import UUID

LEAST_WAIT, MOST_WAIT = 10.0, 600.0  # seconds
STEP = 5.0  # seconds: those that wait as long go back in one statement
MOST_PUT_OFF = 50_000  # that are remembered
FIRST_SECONDS = 0.25  # that one takes, until it is known
WEIGHT = 0.1  # of the latest in the mean


class HeavyRoom:
    """`places` mails are made apart at once, `room` more wait for that."""

    def __init__(self, places: int, room: int = 0) -> None:
        self._free = asyncio.Semaphore(places)
        self._places, self._room = places, places + room
        self._here: Counter[int] = Counter()  # by tenant: those that are being made, and those that wait here
        self._put_off: dict[int, set[UUID]] = {}  # by tenant
        self._seconds = FIRST_SECONDS

    def has_room(self, tenant: int) -> bool:
        """Whether one more of a tenant may wait here."""
        most = max(self._places, self._room // 2)
        return self._here.total() < self._room and self._here[tenant] < most

    @contextlib.asynccontextmanager
    async def place(self, tenant: int, mail: UUID) -> AsyncIterator[None]:
        """Wait for a place and have it."""
        self._here[tenant] += 1
        try:
            async with self._free:
                began = time.monotonic()
                try:
                    yield
                finally:
                    self._seconds += (time.monotonic() - began - self._seconds) * WEIGHT
        finally:
            self._here[tenant] -= 1
            if not self._here[tenant]:
                del self._here[tenant]
            self._forget(tenant, mail)

    def put_off(self, tenant: int, mail: UUID) -> float:
        """For how many seconds a mail waits that finds no room."""
        if sum(map(len, self._put_off.values())) >= MOST_PUT_OFF:
            self._put_off.clear()
        waiting = self._put_off.setdefault(tenant, set())
        waiting.add(mail)
        longest = min(MOST_WAIT, LEAST_WAIT + len(waiting) * self._seconds / self._places)
        return STEP * math.ceil(random.uniform(0.5, 1) * longest / STEP)  # noqa: S311 - to spread them

    def _forget(self, tenant: int, mail: UUID) -> None:
        waiting = self._put_off.get(tenant)
        if waiting is not None:
            waiting.discard(mail)
            if not waiting:
                del self._put_off[tenant]
