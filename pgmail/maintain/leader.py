"""Leads the fleet while it holds the lease row, and does what needs doing once. Any worker can.

Every task has its own clock and its own failure: one that fails is logged and tried again at its next turn, and
never keeps the others from running. Losing the lead in the middle is harmless: each task may run twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import structlog

from pgmail import sqlfiles
from pgmail.errors import DatabaseAway, PgmailError
from pgmail.maintain.away import Away
from pgmail.maintain.chores import Chore, Chores
from pgmail.maintain.domains import Domains
from pgmail.maintain.rescuer import Watch
from pgmail.maintain.retention import Retention
from pgmail.metrics.counts import Sample
from pgmail.service import Loop
from pgmail.store import presence as store
from pgmail.store.database import Database
from pgmail.store.faults import Busy
from pgmail.store.metrics import FleetFigures
from pgmail.store.presence import Presence

_Q = sqlfiles.queries("maintain")
_log = structlog.get_logger()

LEASE_SECONDS = 3.0
TICK_SECONDS = 0.5
REPAIR_SECONDS, REPAIR_MOST_SECONDS = 3.0, 30.0  # between two looks for lanes that sleep on due mail
REPAIR_PART = 0.01  # of the time, where there are so many lanes that a look takes long
LOW_DAYS = 14  # fewer days of partitions left than this raises an alarm


class Leader(Loop):
    """Tries to lead, and leads. `leading` tells whether it does."""

    def __init__(
        self,
        database: Database,
        presence: Presence,
        *,
        silence_seconds: float,
        name_servers: Sequence[tuple[str, int]] = (),
        chores: Sequence[Chore] = (),
        show_tenants: bool = False,
        away: Away | None = None,
    ) -> None:
        """`show_tenants`: its figures of the queue name tenants."""
        super().__init__("leader")
        self._away = away or Away("")
        self._chores = Chores(chores)
        self.leading = False
        self.rescued = 0  # leases taken from dead workers
        self.figures = FleetFigures(database, lambda: self.leading, tenants=show_tenants)
        self._database, self._presence = database, presence
        self._watch = Watch(silence_seconds, time.monotonic)
        # Reads must come much more often than the silence they measure.
        self._tick_seconds = min(TICK_SECONDS, silence_seconds / 5)
        self._look_seconds, self._look_at = silence_seconds / 5, 0.0
        self._since: Any = None
        self._retention = Retention(database)
        self._domains = Domains(database, name_servers)
        self._tasks: list[tuple[str, float, Callable[[], Awaitable[None]]]] = [
            ("rescue", 0.0, self._rescue),  # at every tick
            ("orphans", 30.0, self._orphans),
            ("wake_due", 0.5, self._wake_due),
            ("repair_lanes", REPAIR_SECONDS, self._repair),
            ("expire", 1.0, lambda: self._count("expire")),
            ("fold_tallies", 1.0, lambda: self._count("fold_tallies")),
            ("doors", 1.0, lambda: self._count("doors")),  # of what was folded just now
            ("purge_idempotency", 60.0, lambda: self._count("purge_idempotency")),
            ("purge_suppressions", 60.0, lambda: self._count("purge_suppressions")),
            ("make_partitions", 3600.0, self._partitions),
            ("retention", 600.0, self._retain),
            ("domains", 600.0, self._domains.start),
        ]
        self._due = dict.fromkeys((name for name, _, _ in self._tasks), 0.0)

    async def run(self) -> None:
        """Try to lead twice a second; while leading, run what is due."""
        self.ready()
        try:
            while not self.draining.is_set():
                try:
                    await self._tick()
                    self._away.reached()
                except DatabaseAway:
                    self._away.missed()
                    self._watch.failed()
                    self.leading = False
                if self.leading:
                    self._chores.lead()
                else:
                    await self._chores.rest()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.draining.wait(), self._tick_seconds)
        finally:
            self.leading = False
            await self._chores.rest()
            await self._domains.stop()
            await self._away.close()

    def samples(self) -> Iterator[Sample]:
        """Whether it leads, and while it does what it knows of the fleet."""
        yield Sample("leading", (), float(self.leading))
        yield Sample("rescued_leases", (), self.rescued)
        yield from self.figures.samples()

    async def refresh(self) -> None:
        """Have the fleet's figures fetched, if this process leads and they have grown old."""
        await self.figures.refresh()

    async def _tick(self) -> None:
        leading = await store.lead(self._database, self._presence.epoch, LEASE_SECONDS)
        if leading and not self.leading:
            _log.info("leader.leads", epoch=self._presence.epoch)
            self._since = None
        self.leading = leading
        if not leading:
            await self._look()
            return
        for name, seconds, task in self._tasks:
            now = time.monotonic()
            if now < self._due[name]:
                continue
            self._due[name] = now + seconds
            try:
                await task()
            except Busy as error:
                self._due[name] = now + min(seconds, 60.0)
                _log.info("leader.task_waits", task=name, reason=str(error))
            except DatabaseAway:
                raise
            except PgmailError as error:
                _log.warning("leader.task_failed", task=name, error=str(error))
            except Exception:  # noqa: BLE001 - told below
                # One broken task must not stop rescue and the others; it is told, and tried again.
                _log.exception("leader.task_crashed", task=name)

    async def _look(self) -> None:
        """Count silence while another leads: with the leader others may die, and its lease has to run out first."""
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + self._look_seconds
            self._watch.saw(await store.beats(self._database))

    async def _rescue(self) -> None:
        for epoch in self._watch.saw(await store.beats(self._database)):
            if epoch == self._presence.epoch:
                continue
            await self._rescue_one(epoch)
            self._due["orphans"] = 0.0  # some of its rows may be locked: looked for again at the next tick

    async def _orphans(self) -> None:
        for row in await self._database.many(_Q["orphans"]):
            await self._rescue_one(row.epoch)

    async def _rescue_one(self, epoch: int) -> None:
        try:
            row = await self._database.one(_Q["rescue"], {"epoch": epoch})
        except Busy as error:  # a claim of its own is on its way; others must not wait for that
            _log.info("leader.rescue_waits", worker=epoch, reason=str(error))
            return
        self.rescued += row.rescued if row else 0
        _log.warning("leader.rescued", worker=epoch, leases=row.rescued if row else 0)

    async def _wake_due(self) -> None:
        clock = await self._database.one(_Q["clock"])
        if clock is None:
            return
        await self._database.one(_Q["wake_due"], {"since": self._since or "-infinity"})
        self._since = clock.now - timedelta(seconds=30)  # rows that commit while we look

    async def _repair(self) -> None:
        """Look for lanes that sleep on due mail; the more rarely the longer a look takes, which goes by the lane."""
        began = time.monotonic()
        await self._count("repair_lanes")
        done = time.monotonic()
        wait = (done - began) / REPAIR_PART
        self._due["repair_lanes"] = done + min(max(REPAIR_SECONDS, wait), REPAIR_MOST_SECONDS)

    async def _count(self, name: str) -> None:
        row = await self._database.one(_Q[name])
        if row and row[0] and name in ("repair_lanes", "expire"):
            _log.info("leader." + name, count=row[0])

    async def _partitions(self) -> None:
        try:
            made = 0
            while (
                row := await self._database.one(_Q["make_partition"])
            ) and row.made:  # each its own transaction
                made += 1
            if made:
                _log.info("leader.partitions_made", count=made)
        finally:
            state = await self._database.one(_Q["partition_state"])
            if state and (state.days_left < LOW_DAYS or state.strays):
                self._due["make_partitions"] = time.monotonic() + 60.0
                _log.error("leader.partitions_low", days_left=state.days_left, strays=state.strays)

    async def _retain(self) -> None:
        """Take one short step; the next follows at the next tick, so that nothing else waits for all of it."""
        if await self._retention.step():
            self._due["retention"] = 0.0
