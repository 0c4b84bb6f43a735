"""Writes down what became of mails, many at a time. A result is never dropped.

Results wait in memory for the next flush, 15 ms or a full batch away. With the database away they wait longer,
and the claimer takes nothing new, because their slots are still taken. A row that another transaction holds is
tried again; a lease that was lost is recorded by SQL and counted here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from uuid import UUID

import structlog

from pgmail.errors import DatabaseAway
from pgmail.service import Loop
from pgmail.store import work
from pgmail.store.database import Database
from pgmail.store.work import Settlement

_log = structlog.get_logger()

TENANTS_A_FLUSH = 16  # in one transaction
LAST_SECONDS = 2.0  # for results that are known when the process must stop


class Settler(Loop):
    """Collects settlements by tenant and flushes them. `settled` is called with the ids whose leases are over."""

    def __init__(
        self, database: Database, epoch: Callable[[], int], *, interval_ms: int, batch: int,
        settled: Callable[[Collection[UUID]], None],
    ) -> None:  # fmt: skip
        super().__init__("settler")
        self._database, self._epoch, self._freed = database, epoch, settled
        self._seconds, self._batch = interval_ms / 1000, batch
        self._waiting: dict[int, list[Settlement]] = {}
        self._count = 0
        self._some = asyncio.Event()
        self._full = asyncio.Event()
        self.fenced = 0

    def add(self, tenant: int, settlement: Settlement) -> None:
        """Take a result over. It will be written."""
        self._waiting.setdefault(tenant, []).append(settlement)
        self._count += 1
        self._some.set()
        if self._count >= self._batch:
            self._full.set()

    @property
    def waiting(self) -> int:
        """Results not yet written."""
        return self._count

    async def run(self) -> None:
        """Flush until drained and empty."""
        self.ready()
        while not (self.draining.is_set() and not self._count):
            if not self._count:
                await _first(self._some.wait(), self.draining.wait())
                continue
            if not self.draining.is_set():
                await _within(self._full.wait(), self._seconds)
            self._some.clear()
            self._full.clear()
            await self._flush()

    async def stop(self) -> None:
        """Stop, but write first what is known, for a moment: a result that is lost is a copy later."""
        self.draining.set()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=LAST_SECONDS)
        await super().stop()
        if self._count:  # they came after it had drained
            await _within(self._flush(), LAST_SECONDS)

    async def _flush(self) -> None:
        batches, self._waiting, self._count = self._waiting, {}, 0
        pause = 0.0
        parts = [
            (tenant, results[start : start + self._batch])
            for tenant, results in batches.items()
            for start in range(0, len(results), self._batch)
        ]
        try:
            while parts:
                some = parts[:TENANTS_A_FLUSH]
                try:
                    answers = await work.settle_each(self._database, self._epoch(), some)
                except DatabaseAway as error:
                    _log.warning("settle.waits", error=str(error), results=sum(len(part) for _, part in some))
                    pause = 0.5
                    for tenant, part in some:
                        self._again(tenant, part)
                else:
                    for (tenant, part), answer in zip(some, answers, strict=True):
                        pause = max(pause, self._answered(tenant, part, answer))
                del parts[:TENANTS_A_FLUSH]
        finally:
            # After a fault of ours, or a cancellation: what was not written is not forgotten.
            for tenant, part in parts:
                self._again(tenant, part)
        if pause:
            await asyncio.sleep(pause)

    def _answered(self, tenant: int, part: list[Settlement], answers: dict[UUID, str]) -> float:
        locked = [result for result in part if answers.get(result.id) == "locked"]
        fenced = sum(answer == "fenced" for answer in answers.values())
        if fenced:
            self.fenced += fenced
            _log.warning("settle.fenced", results=fenced, total=self.fenced)
        self._again(tenant, locked)
        if len(locked) < len(part):
            done = part if not locked else [result for result in part if answers.get(result.id) != "locked"]
            self._freed([result.id for result in done])
        return 0.05 if locked else 0.0

    def _again(self, tenant: int, results: list[Settlement]) -> None:
        if results:
            self._waiting.setdefault(tenant, []).extend(results)
            self._count += len(results)
            self._some.set()


async def _within(awaitable: object, seconds: float) -> None:
    try:
        await asyncio.wait_for(awaitable, seconds)  # type: ignore[arg-type]
    except TimeoutError:
        return


async def _first(*awaitables: object) -> None:
    tasks = [asyncio.ensure_future(a) for a in awaitables]  # type: ignore[call-overload]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
