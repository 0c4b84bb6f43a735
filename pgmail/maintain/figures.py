"""The chore that makes figures: it reads the feed into roll-ups, and looks at the queue so that no page has to.

One thing after the other, on one connection. Each task paces itself by what its last step took, so that however much
there is it takes a small part of that connection's time: a deep queue is gauged more rarely, and figures come a
little later instead.

What can go wrong: the index of the feed is still being built after an upgrade. Then nothing is rolled up until it is
whole, and everything of meanwhile afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence

import structlog

from pgmail.maintain.chores import Chore
from pgmail.sqlfiles import queries
from pgmail.store.database import Database

_Q = queries("insight")
_log = structlog.get_logger()

EVENTS = 50_000  # that one step reads at most
WAIT_SECONDS = 5.0  # for an index, or another process
# Seconds between two steps at least, and the part of the time that a task may take.
ROLL_SECONDS, ROLL_PART = 2.0, 0.02
ROLL_MOST_SECONDS = 10.0
BEHIND_PART = 0.2  # while there is more to read
LANES_SECONDS, LANES_PART = 3.0, 0.01
STATES_SECONDS, STATES_PART = 5.0, 0.005
# And at most, however long they take: who asks for a gauge that is older looks for himself (gauge_kept).
LANES_MOST_SECONDS, STATES_MOST_SECONDS = 60.0, 1_800.0
TRIM_SECONDS, TRIM_PART = 600.0, 0.01


class Figures:
    """Does what is due first."""

    name = "figures"

    def __init__(self, database: Database) -> None:
        self._database = database.patient(None)
        self._tasks: tuple[Callable[[], Awaitable[Callable[[float], float]]], ...] = (
            self._roll,
            self._lanes,
            self._states,
            self._trim,
        )
        self._due = [0.0] * len(self._tasks)

    async def step(self) -> float:
        """Do one short piece of work; the seconds until the next."""
        number = min(range(len(self._tasks)), key=lambda n: self._due[n])
        now = time.monotonic()
        if self._due[number] <= now:
            self._due[number] = now + WAIT_SECONDS  # should it fail
            wait = await self._tasks[number]()
            done = time.monotonic()
            self._due[number] = done + wait(done - now)
        return max(0.0, min(self._due) - time.monotonic())

    async def _roll(self) -> Callable[[float], float]:
        rows = await self._database.many(_Q["roll_up"], {"most": EVENTS})
        if not rows:
            return lambda _: WAIT_SECONDS
        if rows[0].more:
            return lambda took: took / BEHIND_PART
        return lambda took: min(max(ROLL_SECONDS, took / ROLL_PART), ROLL_MOST_SECONDS)

    async def _lanes(self) -> Callable[[float], float]:
        await self._database.one(_Q["gauge_lanes"])
        return lambda took: min(max(LANES_SECONDS, took / LANES_PART), LANES_MOST_SECONDS)

    async def _states(self) -> Callable[[float], float]:
        row = await self._database.one(_Q["gauge_states"])
        if row is not None and row.off_by:
            _log.info("figures.depth_righted", mails=row.off_by)
        return lambda took: min(max(STATES_SECONDS, took / STATES_PART), STATES_MOST_SECONDS)

    async def _trim(self) -> Callable[[float], float]:
        row = await self._database.one(_Q["trim_rollups"])
        more = row is not None and row.gone > 0
        return lambda took: max(1.0, took / BEHIND_PART) if more else max(TRIM_SECONDS, took / TRIM_PART)


def figures(database: Database) -> Sequence[Chore]:
    """Return the chores that make figures."""
    return (Figures(database),)
