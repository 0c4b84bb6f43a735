"""Looks for mail behind the heads of lanes where that is dear: beside the claiming, and at a small part of the time.

A transaction that commits late brings mail whose due time lies behind a head that has passed. A claim finds it by
beginning further back now and then, which costs next to nothing as long as what was sent is cleared away. While a
snapshot is held open somewhere (a dump, a report, a forgotten transaction) it is not: each look walks over all that
was sent since, a million rows in some minutes. Then lanes are `dear` (lanes.py), claims begin a few seconds back at
most, and what lies further back is looked for here: by a statement that locks nothing and takes part in no claim.

| late by | found within, as a rule | while it is dear |
|---|---|---|
| up to 3 s | 1 s | the same |
| up to 60 s | 10 s | 10 s, or 50 times what a look takes |
| any time | 60 s (120 s, if no worker leads) | the same, or 50 times what a look takes |

What can go wrong: the database is away. The next look comes as soon as after a short one: that it was waited for says
nothing of what a look takes. A claim that could not reach what waits has moved its head past it (`put_back`): then
mail that anybody would send stands still until it is found, and the next look waits no longer than the last one took.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

import structlog

from pgmail.errors import DatabaseAway
from pgmail.store import work
from pgmail.store.database import Database
from pgmail.store.faults import Busy
from pgmail.worker.lanes import DEAR_SECONDS, LATE_ROWS, LOOK_FAR, LOOK_FAR_EVERY, START, Lane, LaneBook

_log = structlog.get_logger()

PART = 0.02  # of the time, at most, goes into looking
LANES_A_LOOK = 200  # of one tenant in one statement
PATIENCE_SECONDS = 600.0  # for one statement
AGAIN_SECONDS = 0.5  # after a look that found mail, or had nothing to look at


class LookBack:
    """Looks far back in dear lanes, one look at a time."""

    def __init__(self, database: Database, book: LaneBook, wake: Callable[[], None]) -> None:
        """`wake` is called when there is mail to claim."""
        self._database, self._book, self._wake = database, book, wake
        self._task: asyncio.Task[None] | None = None
        self._next_at = self._soon_at = 0.0  # monotonic; the latter where a head was moved past what waits
        self.looks = self.found = 0

    def start(self) -> None:
        """Begin a look if one is due. Raises what the last one crashed of."""
        if self._task is not None:
            if not self._task.done():
                return
            task, self._task = self._task, None
            task.result()
        now = time.monotonic()
        if now < (min(self._soon_at, self._next_at) if self._book.skipped else self._next_at):
            return
        self._next_at = self._soon_at = now + AGAIN_SECONDS  # there may be many lanes, and none of them dear
        self._book.skipped = False
        if lanes := self._book.dear():
            self._task = asyncio.create_task(self._look(lanes), name="look back")

    async def stop(self) -> None:
        """End a look that is under way."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, DatabaseAway):
                await task

    async def _look(self, dear: dict[int, list[Lane]]) -> None:
        began = time.monotonic()
        again = away = False
        try:
            for tenant, lanes in dear.items():
                for start in range(0, len(lanes), LANES_A_LOOK):
                    again = await self._look_at(tenant, lanes[start : start + LANES_A_LOOK]) or again
        except DatabaseAway as error:
            _log.info("look_back.waits", error=str(error))
            away = True
        now = time.monotonic()
        took = now - began
        self._soon_at = now + max(AGAIN_SECONDS, took)
        # With more to find, soon: but never more than its part of the time.
        self._next_at = began + max(AGAIN_SECONDS if again else LOOK_FAR_EVERY, took / PART)
        if away:
            self._next_at = self._soon_at = now + max(LOOK_FAR_EVERY, took)

    async def _look_at(self, tenant: int, lanes: list[Lane]) -> bool:
        """Look at some lanes of one tenant. Whether there was mail."""
        began, far = time.monotonic(), self._book.present() - LOOK_FAR
        heads = [(lane.id, far if lane.swept else START, lane.due, lane.after) for lane in lanes]
        whole = [lane for lane in lanes if not lane.swept]
        for lane in whole:
            lane.swept = True  # from now on: a sweep, or a head that is moved meanwhile, wants another one
        try:
            found = await work.late(self._database.patient(PATIENCE_SECONDS), tenant, heads, LATE_ROWS)
        except BaseException as error:
            for lane in whole:
                lane.swept = False
            if isinstance(error, Busy):  # the server ended it: lanes of others need not wait for these
                _log.info("look_back.waits", tenant=tenant, error=str(error))
                return False
            raise
        cheap = time.monotonic() - began < DEAR_SECONDS / 2
        self.looks += 1
        for lane in whole:
            # The last minute may be cheap, and what lies behind it not.
            lane.dear = not (cheap and lane.swept)
        for lane in lanes:
            if lane.id in found:
                due, rows = found[lane.id]
                self.found += rows
                self._book.found_late(lane, due, rows)
        if found:
            self._wake()
        return bool(found)
