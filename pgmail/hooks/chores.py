"""What the leader does for webhooks: events from the feed into their queue, and tidying.

`FanOut` reads nothing while nobody has an endpoint, and is a guest of the database otherwise: after a step that found
much it rests so long that a burst of mail costs a twentieth of one processor at most.

What can go wrong: more happens, for long, than that can pass on. Then webhooks come later and later,
never not at all; `pgmail webhook show` tells how old the oldest is.
"""

from __future__ import annotations

import time

from pgmail.store import hooks as store
from pgmail.store.database import Database

FACTS = 1_000  # a step
LOOK_SECONDS = 0.25
IDLE_SECONDS = 1.0
SHARE = 0.05
TIDY_SECONDS = 600.0
ROWS = 5_000


class FanOut:
    """A chore (`maintain.chores.Chore`)."""

    name = "webhooks: from the feed"

    def __init__(self, database: Database) -> None:
        self._database = database

    async def step(self) -> float:
        """Pass on what is new."""
        began = time.monotonic()
        found = await store.fan_out(self._database, FACTS)
        if found.idle:
            return IDLE_SECONDS
        rest = (time.monotonic() - began) * (1 / SHARE - 1)
        return rest if found.more else max(LOOK_SECONDS, rest)


class Tidy:
    """A chore: drops what is past its time of the log, and what waited for endpoints that nobody mended."""

    name = "webhooks: tidying"

    def __init__(self, database: Database, days: int) -> None:
        self._database, self._days = database, days

    async def step(self) -> float:
        """Do a part of it."""
        rows = await store.keep(self._database, self._days, ROWS)
        return 1.0 if rows >= ROWS else TIDY_SECONDS
