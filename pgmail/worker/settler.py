"""Writes down what became of mails, many at a time. A result is never dropped.

Results wait in memory for the next flush, 15 ms or a full batch away. With the database away they wait longer,
and the claimer takes nothing new, because their slots are still taken. A row that another transaction holds is
tried again; a lease that was lost is recorded by SQL and counted here.

A bounce that says that its address is gone is noted with its settle, which waits for nobody. A task beside puts
the address on the suppression list: that may meet an application's open transaction, and then it is tried again.
Notes stand in the database, and any worker takes any: one that dies before it is done loses none.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterator
from uuid import UUID

import structlog

from pgmail.errors import DatabaseAway
from pgmail.metrics.counts import Histogram, Names, Sample
from pgmail.service import Loop, first_of
from pgmail.store import work
from pgmail.store.database import Database
from pgmail.store.work import Settlement

_log = structlog.get_logger()

TENANTS_A_FLUSH = 16  # in one transaction
NOTES_A_CALL = 50
NOTES_AGAIN_SECONDS = 1.0  # after an address that somebody else has in hand, or with the database away
NOTES_SECONDS = 30.0  # until notes of other workers are looked for, which may have died
MOST_STREAMS = 50  # that figures name
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
        self._noted = asyncio.Event()
        self._noted.set()  # who was here before may have left some
        self._closed = asyncio.Event()
        self.fenced = self.batches = 0
        self.results: dict[tuple[str, str], int] = {}  # by kind and stream
        self.seconds = Histogram()
        self._streams = Names(most=MOST_STREAMS)

    def samples(self) -> Iterator[Sample]:
        """What became of mail, and how long it took to write that down."""
        for (kind, stream), n in self.results.items():
            yield Sample("results", (kind, stream), n)
        yield Sample("settle_batches", (), self.batches)
        yield Sample("phase_seconds", ("settle",), self.seconds)
        yield Sample("fenced", (), self.fenced)
        yield Sample("results_waiting", (), self._count)

    def add(self, tenant: int, settlement: Settlement) -> None:
        """Take a result over. It will be written."""
        results = self._waiting.get(tenant)
        if results is None:
            results = self._waiting[tenant] = []
        results.append(settlement)
        if not self._count:
            self._some.set()
        self._count += 1
        if self._count >= self._batch:
            self._full.set()

    @property
    def waiting(self) -> int:
        """Results not yet written."""
        return self._count

    async def run(self) -> None:
        """Flush until drained and empty."""
        self.ready()
        beside = asyncio.create_task(self._suppress(), name="settler.suppress")
        try:
            while not (self.draining.is_set() and not self._count):
                if beside.done():
                    beside.result()  # it ends by a fault of ours only, which nobody may miss
                if not self._count:
                    await first_of(self._some.wait(), self.draining.wait(), asyncio.wait({beside}))
                    continue
                if not self.draining.is_set():
                    await _within(self._full.wait(), self._seconds)
                self._some.clear()
                self._full.clear()
                await self._flush()
            self._closed.set()  # a call under way ends by itself: to cancel it would cost its connection
            await asyncio.wait({beside}, timeout=LAST_SECONDS)
        finally:
            beside.cancel()

    async def stop(self) -> None:
        """Stop, but write first what is known, for a moment: a result that is lost is a copy later."""
        self.draining.set()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=LAST_SECONDS)
        await super().stop()
        if self._count:  # they came after it had drained
            await _within(self._flush(), LAST_SECONDS)

    async def _suppress(self) -> None:
        while not self._closed.is_set():
            await first_of(self._noted.wait(), self._closed.wait(), seconds=NOTES_SECONDS)
            if not self._closed.is_set() and await self._suppress_some():
                await _within(self._closed.wait(), NOTES_AGAIN_SECONDS)
        if self._noted.is_set():
            await self._suppress_some()

    async def _suppress_some(self) -> bool:
        """Put noted addresses on the list. Whether some must wait; `_noted` stays set while there may be more."""
        self._noted.clear()
        try:
            looked, busy = await work.suppress_bounced(self._database, NOTES_A_CALL)
        except DatabaseAway as error:
            _log.info("suppress.waits", error=str(error))
            self._noted.set()
            return True
        if busy:
            _log.info("suppress.waits", addresses=busy, error="another transaction has them in hand")
        if busy or looked == NOTES_A_CALL:
            self._noted.set()
        return busy > 0

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
                    began = time.monotonic()
                    answers = await work.settle_each(self._database, self._epoch(), some)
                    self.seconds.observe(time.monotonic() - began)
                    self.batches += 1
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
            self._tell(done)
            self._freed([result.id for result in done])
            if any(result.suppress for result in done):
                self._noted.set()
        return 0.05 if locked else 0.0

    def _tell(self, results: list[Settlement]) -> None:
        """Count what was written."""
        counts, label = self.results, self._streams.of
        for result in results:
            key = result.kind, label(result.stream)
            counts[key] = counts.get(key, 0) + 1

    def _again(self, tenant: int, results: list[Settlement]) -> None:
        if results:
            self._waiting.setdefault(tenant, []).extend(results)
            self._count += len(results)
            self._some.set()


async def _within(awaitable: Awaitable[object], seconds: float) -> None:
    try:
        await asyncio.wait_for(awaitable, seconds)
    except TimeoutError:
        return
