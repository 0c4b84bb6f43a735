"""Decides when to ask for work and how much: as much as there are free slots, from the lanes that go next.

Busy, it never sleeps: a freed slot is a claim. With nothing to do it asks again ever more slowly, and after a
quarter of a second declares itself asleep, so that `send` notifies; it then looks once more, since mail may
have been committed in between, and waits for the notification or the next poll. Polling is the truth: with
every notification lost, mail waits one poll.

With the database away it waits with a growing pause. A worker whose beat is stale claims nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable

import structlog

from pgmail.errors import DatabaseAway
from pgmail.service import Loop
from pgmail.store import work
from pgmail.store.database import Database
from pgmail.store.presence import Presence
from pgmail.store.work import Lease, StreamRow
from pgmail.worker.content import Library
from pgmail.worker.lanes import Lane, LaneBook
from pgmail.worker.relays import Relays
from pgmail.worker.sender import Job

_log = structlog.get_logger()

DROWSY_SECONDS = 0.25  # without mail before it counts as asleep
REFRESH_SECONDS = 0.25  # lanes under load
COMPLETE_SECONDS = 15.0  # all lanes anew: versions may commit out of order
SWEEP_SECONDS = 60.0  # by the leader; by the others twice as rarely, for a leader need not be a worker
LEARN_SECONDS = 1.0  # streams and relays
TIDY_SECONDS = 5.0  # lanes that may go idle


class Claimer(Loop):
    """Fills `jobs` for the slots. `free` is called by whoever ends a lease."""

    def __init__(
        self, database: Database, presence: Presence, library: Library, relays: Relays, *, slots: int,
        poll_ms: int, leading: Callable[[], bool],
    ) -> None:  # fmt: skip
        super().__init__("claimer")
        self._database, self._presence, self._library, self._relays = database, presence, library, relays
        self._leading, self._poll = leading, poll_ms / 1000
        self.jobs: asyncio.Queue[Job] = asyncio.Queue()
        self.book = LaneBook(time.monotonic)
        self._streams: dict[tuple[int, str], StreamRow] = {}
        # Leases out at once: one in each slot, and a small stock so that no slot waits for a round trip.
        self._most = slots * 2
        self._out = 0
        self._wake = asyncio.Event()
        self._told = True  # something may have come; look before sleeping
        self._returned: deque[tuple[Lease, str | None]] = deque()
        self._refreshed_at = self._completed_at = self._learned_at = self._quiet_at = 0.0
        self._swept_at = time.monotonic()
        self._busy_at = 0.0
        self._asleep = False
        self._probe: asyncio.Task[None] | None = None

    @property
    def out(self) -> int:
        """Leases that are neither settled nor given back."""
        return self._out

    def wake(self) -> None:
        """Something came (a notification)."""
        self._told = True
        self._wake.set()

    def freed(self, n: int) -> None:
        """So many leases were settled."""
        self._out -= n
        self._wake.set()

    async def give_back(self, lease: Lease, reason: str | None) -> None:
        """Return a lease untried; with a reason the mail is told as delayed."""
        self._returned.append((lease, reason))
        self._wake.set()

    async def run(self) -> None:
        """Claim until drained, then return what no slot has begun."""
        self.ready()
        pause = 0.2
        while not self.draining.is_set():
            try:
                await self._round()
                pause = 0.2
            except DatabaseAway as error:
                _log.warning("claim.waits", error=str(error), retry_seconds=pause)
                await self._nap(pause)
                pause = min(pause * 2, 5.0)
        await self._hand_back_all()

    async def drain(self, timeout: float) -> bool:  # noqa: ASYNC109 - as in Service
        """Stop claiming at once."""
        self._presence.leaving()
        self.draining.set()
        self._wake.set()
        return await super().drain(timeout)

    async def stop(self) -> None:
        """Stop, and give back what slots returned while they drained."""
        await super().stop()
        if self._probe is not None:
            self._probe.cancel()
            with contextlib.suppress(asyncio.CancelledError, DatabaseAway):
                await self._probe
        await self._hand_back_all()

    async def _round(self) -> None:
        self._wake.clear()
        await self._return_leases()
        now = time.monotonic()
        if now - self._learned_at >= LEARN_SECONDS:
            await self._learn(now)
        told, self._told = self._told, False
        if told or now - self._refreshed_at >= (self._poll if self._asleep else REFRESH_SECONDS):
            await self._refresh(now, wake=told or self._asleep)
            await self._tidy(now)
        got = await self._claim()
        now = time.monotonic()
        if got:
            if self._asleep and now - self._busy_at < DROWSY_SECONDS:
                await self._doze(asleep=False)  # a second find in a row: busy, notifications only cost
            self._busy_at = now
            return
        await self._rest(now)

    async def _rest(self, now: float) -> None:
        """Wait for a reason to look again."""
        if self._told:
            return
        free = self._most - self._out
        if free <= 0 or not self._presence.fresh:
            await self._nap(self._presence_pause())
            return
        drowsy = now - self._busy_at >= DROWSY_SECONDS and self._out == 0
        if drowsy and not self._asleep:
            await self._doze(asleep=True)
            self._told = True  # what was committed before the database knew was not announced: look once more
            return
        if self._asleep:
            await self._nap(min(self._poll, self._relays.wait_seconds() or self._poll))
            return
        look = self.book.next_look()
        waits = [REFRESH_SECONDS, DROWSY_SECONDS, *([max(look, 0.005)] if look is not None else [])]
        await self._nap(min(waits))

    def _presence_pause(self) -> float:
        return REFRESH_SECONDS if self._presence.fresh else self._poll

    async def _claim(self) -> bool:
        """Claim for every free slot. True if any mail came."""
        came = False
        while (free := self._most - self._out) > 0 and self._presence.fresh and not self.draining.is_set():
            chosen = self.book.choose(free, self._blocked)
            if chosen is None:
                break
            tenant, lanes = chosen
            claims = self.book.claims(lanes, free, self._traced)
            # Leased is leased, even if this task is cancelled while the rows are on their way.
            leases = await work.claim(self._database, tenant, self._presence.epoch, claims)
            self._out += len(leases)
            self.book.claimed(lanes, claims, leases)
            if leases:
                came = True
                await self._prepare(tenant, leases)
        return came

    async def _prepare(self, tenant: int, leases: list[Lease]) -> None:
        """Fetch what the rows need and hand them to the slots, oldest first."""
        by_stream: dict[str, list[tuple[Lease, Lane]]] = {}
        for lease in leases:
            lane = self.book.get(tenant, lease.lane)
            by_stream.setdefault(lane.stream, []).append((lease, lane))
        for stream, pairs in by_stream.items():
            try:
                policy = await self._policy(tenant, stream)
                found = await self._library.load([lease for lease, _ in pairs], stream)
            except DatabaseAway:
                self._returned.extend((lease, None) for lease, _ in pairs)
                continue
            for lease, lane in pairs:
                message, person = found.get(lease.id, (None, None))
                self.jobs.put_nowait(Job(lease, lane, policy, message, person))

    async def _policy(self, tenant: int, stream: str) -> StreamRow:
        if (tenant, stream) not in self._streams:
            await self._learn(time.monotonic())
        # A stream that somebody deleted by hand: its mail goes by the defaults.
        return self._streams.get((tenant, stream)) or StreamRow(tenant, stream)

    def _blocked(self, lane: Lane) -> bool:
        stream = self._streams.get((lane.tenant, lane.stream))
        return self._relays.blocked(stream.relay if stream is not None else "default")

    def _traced(self, lane: Lane) -> bool:
        stream = self._streams.get((lane.tenant, lane.stream))
        return stream is not None and stream.trace == "full"

    async def _learn(self, now: float) -> None:
        self._streams = {(row.tenant, row.name): row for row in await work.streams(self._database)}
        await self._relays.learn()
        self._learned_at = now
        if self._probe is not None and self._probe.done():
            self._probe.result()  # raises what it crashed of
            self._probe = None
        if self._relays.wait_seconds() == 0.0 and self._probe is None:
            # Beside the claiming: a probe of a host that says nothing takes minutes.
            self._probe = asyncio.create_task(self._try_relays(), name="probe")

    async def _try_relays(self) -> None:
        if await self._relays.probe():
            self.book.wake_all()
            self._wake.set()

    async def _refresh(self, now: float, *, wake: bool) -> None:
        complete = now - self._completed_at >= COMPLETE_SECONDS or self.book.version is None
        version = None if complete or self.book.version is None else self.book.version
        rows = await work.fold_and_refresh(self._database, version)
        self.book.update(rows, complete=complete)
        self._refreshed_at = now
        if complete:
            self._completed_at = now
        if now - self._swept_at >= SWEEP_SECONDS * (1 if self._leading() else 2):
            self._swept_at = now
            self.book.sweep()
        if wake:
            self.book.wake_all()

    async def _tidy(self, now: float) -> None:
        """Let lanes go idle that were empty for a quiet time."""
        if now - self._quiet_at >= TIDY_SECONDS:
            self._quiet_at = now
            for tenant, lanes in self.book.quiet().items():
                await work.idle(self._database, tenant, [lane.id for lane in lanes])

    async def _doze(self, *, asleep: bool) -> None:
        self._asleep = asleep
        await self._presence.set_asleep(asleep)

    async def _nap(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), seconds)

    async def _return_leases(self) -> None:
        """Give back what slots returned, by tenant and reason."""
        groups: dict[tuple[int, str | None], list[Lease]] = {}
        taken = len(self._returned)
        for lease, reason in list(self._returned)[:taken]:
            groups.setdefault((lease.tenant, reason), []).append(lease)
        kept: list[tuple[Lease, str | None]] = []
        for (tenant, reason), leases in groups.items():
            back = await work.release(self._database, tenant, self._presence.epoch, leases, reason)
            if len(back) < len(leases):
                # A row that another transaction has locked (a cancel that came too late) is still ours: once more.
                ours = await work.still_leased(self._database, tenant, self._presence.epoch, leases)
                kept += [(lease, reason) for lease in leases if lease.id in ours]
        for _ in range(taken):
            self._returned.popleft()
        self._returned.extend(kept)
        self._out -= taken - len(kept)
        if groups:
            # Our own heads have passed these rows; the rewind reaches us with the lanes.
            self._refreshed_at = 0.0

    async def _hand_back_all(self) -> None:
        """On drain: what no slot has begun goes back at once."""
        while not self.jobs.empty():
            self._returned.append((self.jobs.get_nowait().lease, None))
        try:
            await self._return_leases()
        except DatabaseAway as error:
            _log.warning("drain.kept_leases", error=str(error), leases=len(self._returned))
