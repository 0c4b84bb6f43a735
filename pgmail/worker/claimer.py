"""Decides when to ask for work and how much: enough that no slot waits, from the lanes that go next.

Busy, it never sleeps: when half of the stock is used up it claims again, several tenants a round trip. With
nothing to do it asks ever more slowly, and after a quarter of a second declares itself asleep, so that `send`
notifies; it then looks once more, since mail may have been committed in between, and waits for the
notification or the next poll. Polling is the truth: with every notification lost, mail waits one poll.

The stock of claimed mail is what a tenth of a second sends, whatever the backlog: it bounds memory, and what is
in doubt when this process dies. Urgent mail does not stand behind it: each class has room of its own.
With the database away the claimer waits with a growing pause. A worker whose beat is stale claims nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from uuid import UUID

import msgspec
import structlog

from pgmail.errors import DatabaseAway
from pgmail.metrics.counts import Histogram, Sample
from pgmail.service import Loop
from pgmail.store import work
from pgmail.store.database import Database
from pgmail.store.limits import Key
from pgmail.store.listen import Listener
from pgmail.store.presence import Presence
from pgmail.store.work import Claim, Lease
from pgmail.worker.content import Library
from pgmail.worker.job import Delay, Job
from pgmail.worker.lanes import Lane, LaneBook
from pgmail.worker.limiter import FREE, Limiter, Token
from pgmail.worker.lookback import LookBack
from pgmail.worker.outbox import Outbox
from pgmail.worker.relays import Relays
from pgmail.worker.rules import RelaysAway, Rules

_log = structlog.get_logger()

DROWSY_SECONDS = 0.25  # without mail before it counts as asleep
REFRESH_SECONDS = 0.1  # lanes under load
COMPLETE_SECONDS = 15.0  # all lanes anew: versions may commit out of order
SWEEP_SECONDS = 60.0  # by the leader; by the others twice as rarely, for a leader need not be a worker
TIDY_SECONDS = 5.0  # lanes that may go idle
DEAF_SECONDS = 0.2  # between two polls of a sleeper that no notification reaches
STOCK_SECONDS = 0.1  # of sending that may wait claimed
MOST_STOCK = 500
UNSURE_SECONDS = (0.0, 3.0, 30.0)  # after a claim whose answer was lost
MOST_OUT = 4_000  # leases not settled: with the database away nothing more is sent
TENANTS_A_CLAIM = 8

_NOTHING = None, None  # what is there for a mail whose content is gone


class Claimer(Loop):
    """Fills the outbox. `freed` is called by whoever ends a lease."""

    def __init__(
        self, database: Database, presence: Presence, *, library: Library, relays: Relays, rules: Rules,
        limiter: Limiter, outbox: Outbox, poll_ms: int, leading: Callable[[], bool],
        listener: Listener | None,
    ) -> None:  # fmt: skip
        super().__init__("claimer")
        self._database, self._presence, self._library = database, presence, library
        self._relays, self._rules, self._limiter, self._outbox = relays, rules, limiter, outbox
        self._leading, self._listener, self._poll = leading, listener, poll_ms / 1000
        self.book = LaneBook(time.monotonic)
        self._set_stock(outbox.slots)
        self._mine: set[UUID] = set()  # leases that are neither settled nor given back
        self._ended, self._paced_at = 0, time.monotonic()  # leases over since then: the pace of sending
        self._wake = asyncio.Event()
        self._behind = LookBack(database, self.book, self._wake.set)
        outbox.lowered = self._wake.set
        self._told = True  # something may have come; look before sleeping
        self._returned: deque[tuple[Lease, str | Delay | None]] = deque()
        self._unsure: list[
            tuple[float, int, list[int]]
        ] = []  # when to look, tenant, lanes: claims without an answer
        self._unloaded: list[tuple[int, Lease]] = []  # by tenant: their content waits for memory
        self._lapsed: list[Job] = []  # their tokens' moment passed
        self._refreshed_at = self._completed_at = self._quiet_at = 0.0
        self._swept_at = time.monotonic()
        self._busy_at = 0.0
        self._asleep = False
        self._probes: set[asyncio.Task[None]] = set()
        self.round_trips = self.empty = self.claimed = self.given_back = 0
        self.claim_seconds, self.queue_seconds = Histogram(), Histogram()

    def samples(self) -> Iterator[Sample]:
        """How often it asked, what came, and how long that had waited since it was due."""
        yield Sample("claim_round_trips", (), self.round_trips)
        yield Sample("claims_empty", (), self.empty)
        yield Sample("claimed", (), self.claimed)
        yield Sample("given_back", (), self.given_back)
        yield Sample("leases", (), self.out)
        yield Sample("phase_seconds", ("claim",), self.claim_seconds)
        yield Sample("phase_seconds", ("queue",), self.queue_seconds)

    @property
    def out(self) -> int:
        """Leases that are neither settled nor given back."""
        return len(self._mine)

    def wake(self) -> None:
        """Something came (a notification)."""
        self._told = True
        self._wake.set()

    def freed(self, ids: Collection[UUID]) -> None:
        """These leases were settled."""
        self._mine.difference_update(ids)
        self._ended += len(ids)
        self._wake.set()

    async def give_back(self, lease: Lease, reason: str | Delay | None) -> None:
        """Return a lease untried; with a reason the mail is told as delayed, with a Delay it waits as well."""
        self._returned.append((lease, reason))
        self._wake.set()

    def lapsed(self, job: Job) -> None:
        """A mail missed the moment that its tokens were for: it needs others."""
        self._lapsed.append(job)
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
        await self.hand_back()

    async def drain(self, timeout: float) -> bool:  # noqa: ASYNC109 - as in Service
        """Stop claiming at once."""
        self._presence.leaving()
        self.draining.set()
        self._wake.set()
        return await super().drain(timeout)

    async def stop(self) -> None:
        """Stop, and give back what slots returned while they drained."""
        await super().stop()
        for probe in self._probes:
            probe.cancel()
            with contextlib.suppress(asyncio.CancelledError, DatabaseAway):
                await probe
        try:
            await self._behind.stop()
        finally:
            await self.hand_back()

    async def _round(self) -> None:
        self._wake.clear()
        if self._unsure:
            await self._find_lost()
        await self._return_leases()
        now = time.monotonic()
        self._pace(now)
        if await self._rules.learn():
            self.book.weights = self._rules.weights
            self._look_at_relays()
            await self._obey_pauses()
        if await self._limiter.share():
            await self._withdraw()
        self._relays.obey(self._limiter)
        self._rules.free(self.book)
        told, self._told = self._told, False
        if told or now - self._refreshed_at >= (self._poll if self._asleep else REFRESH_SECONDS):
            await self._refresh(now, wake=told or self._asleep)
            await self._tidy(now)
            self._behind.start()
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
        if not self._presence.fresh or self._room(1) <= 0:
            await self._nap(REFRESH_SECONDS if self._presence.fresh else self._poll)
            return
        freed = self._rules.free(self.book)
        drowsy = now - self._busy_at >= DROWSY_SECONDS and not self._mine and freed is None
        if drowsy and not self._asleep:
            await self._doze(asleep=True)
            self._told = True  # what was committed before the database knew was not announced: look once more
            return
        if self._asleep:
            await self._doze(asleep=True)
            poll = min(self._poll, DEAF_SECONDS) if self._deaf else self._poll
            await self._nap(min(poll, self._relays.wait_seconds() or poll, freed or poll))
            return
        waits = [REFRESH_SECONDS, DROWSY_SECONDS]
        look = self.book.next_look()
        if look is not None and self._room(3) > 0:
            waits.append(max(look, 0.005))
        if freed is not None:
            waits.append(max(freed, 0.002))
        await self._nap(min(waits))

    def _pace(self, now: float) -> None:
        """Adapt the stock to the pace of sending."""
        if (seconds := now - self._paced_at) >= STOCK_SECONDS:
            pace = self._ended / seconds
            wanted = min(MOST_STOCK, max(self._outbox.slots, round(pace * STOCK_SECONDS)))
            # Up at once, down slowly: between two bursts it would starve the slots.
            self._set_stock(wanted if wanted > self._stock else (self._stock * 9 + wanted) // 10)
            self._ended, self._paced_at = 0, now

    def _set_stock(self, jobs: int) -> None:
        self._stock = jobs
        # Then there is room for a good batch (`_room`): it is claimed while the rest is sent, not after it.
        self._outbox.low = (jobs - 1) // 2

    def _room(self, priority: int) -> int:
        """How many rows of a class may be claimed: what is less urgent does not count against it."""
        if len(self._mine) >= MOST_OUT or not self._presence.fresh:
            return 0
        if priority > 1 and self._crowded:
            return 0
        if any(self.book.get(tenant, lease.lane).priority <= priority for tenant, lease in self._unloaded):
            return 0
        held = self._outbox.held
        ahead = sum(held[p] for p in held if p <= priority) + len(self._lapsed)
        idle = max(0, self._outbox.slots - self._outbox.busy)
        room = self._stock + idle - ahead
        # While there is a good stock, wait for a batch that is worth a statement.
        return room if room > self._stock // 2 or ahead == 0 else 0

    @property
    def _crowded(self) -> bool:
        """Whether large mail that is on its way takes up the memory there is for it. It will go."""
        return self._library.full and bool(self._outbox.busy or len(self._outbox))

    async def _claim(self) -> bool:
        """Claim while there is room. True if any mail came."""
        await self._load_rest()
        came = await self._tokens_for_lapsed()
        began = time.monotonic()
        # Not for ever under a backlog: leases given back, pauses, permits and lanes are looked at in between.
        while not self.draining.is_set() and time.monotonic() - began < REFRESH_SECONDS:
            chosen = self.book.choose(self._room, self._rules.stopped, TENANTS_A_CLAIM)
            if not chosen:
                break
            came = await self._claim_from(chosen) or came
        return came

    async def _claim_from(self, chosen: list[tuple[int, list[Lane], int]]) -> bool:
        asked: list[tuple[int, list[Lane], list[Claim]]] = []
        under: dict[int, _Under] = {}
        found: list[list[Lease]] = []
        seen: list[Lease] = []
        wanted: list[tuple[int, list[Claim]]] = []
        began = asked_at = time.monotonic()
        seconds = 0.0
        try:
            for tenant, lanes, rows in chosen:
                for lane in lanes:
                    if not self._rules.knows(lane):
                        await self._rules.policy(tenant, lane.stream)
                claims = self.book.claims(lanes, rows, self._rules.traced, self._rules.holds)
                asked.append((tenant, lanes, await self._within_limits(lanes, claims, under)))
            wanted = [(tenant, claims) for tenant, _, claims in asked if claims]
            if wanted:
                asked_at = time.monotonic()
                found = await work.claim_each(self._database, self._presence.epoch, wanted, seen)
                seconds = time.monotonic() - asked_at
                self._count(seconds, seen)
        except BaseException:
            # The answer may be lost and not the claim: what it may have taken is given back, or it would stay leased
            # for as long as this worker lives.
            self._take_back(seen)
            now = time.monotonic()
            self._unsure += [
                (now + seconds, tenant, [claim.lane for claim in claims])
                for seconds in UNSURE_SECONDS
                for tenant, claims in wanted
            ]
            self.book.put_back([lane for _, lanes, _ in chosen for lane in lanes], now - asked_at)
            raise
        leases = iter(found)
        batches = []
        for tenant, lanes, claims in asked:
            mine = next(leases) if claims else []
            self._mine.update([lease.id for lease in mine])
            self.book.claimed(lanes, claims, mine, seconds)
            if mine:
                batches.append((tenant, mine))
        jobs = await self._prepare(batches)
        for job in jobs:
            self._let_go(job, under[job.lane.id])
        if any(limits.keys for limits in under.values()):
            self._limiter.took(time.monotonic() - began)
        for limits in under.values():
            self._limiter.back(limits.keys, limits.tokens)
        return bool(batches)

    def _count(self, seconds: float, leases: list[Lease]) -> None:
        """Take note of one round trip."""
        self.round_trips += 1
        self.claim_seconds.observe(seconds)
        if not leases:
            self.empty += 1
            return
        self.claimed += len(leases)
        now = self.book.present().timestamp()
        self.queue_seconds.observe_all([max(0.0, now - lease.due_at.timestamp()) for lease in leases])

    def _let_go(self, job: Job, limits: _Under) -> None:
        """Give a job its relay, its token and its gates, and put it before the slots."""
        job.relay = limits.relay
        job.at, job.until = limits.tokens.popleft() if limits.tokens else FREE
        # One that lapsed may have been under limits that are lifted by now.
        job.gates = self._limiter.gates(limits.keys) if limits.keys else ()
        self._relays.ramp(job)
        self._outbox.put(job)

    async def _within_limits(
        self, lanes: list[Lane], claims: list[Claim], under: dict[int, _Under]
    ) -> list[Claim]:
        """Cut claims down to the tokens and permits that there are; lanes without any are parked."""
        going: list[tuple[Lane, Claim]] = []
        wanted: dict[tuple[Key, ...], int] = {}
        for lane, claim in zip(lanes, claims, strict=True):
            relay = self._rules.relay(lane)
            if relay is None:  # it went away since the lane was chosen
                self.book.park(lane, RelaysAway(lane.tenant, lane.stream))
                continue
            keys = self._limiter.keys(lane.tenant, relay, lane.site)
            under[lane.id] = _Under(relay, keys)
            going.append((lane, claim))
            if keys:
                wanted[keys] = wanted.get(keys, 0) + claim.limit
        if not wanted:
            return [claim for _, claim in going]
        await self._limiter.fetch(wanted)
        kept = []
        taken: dict[Key, int] = {}  # by the lanes before, of permits
        for lane, claim in going:
            limits = under[lane.id]
            tokens = self._limiter.reserve(limits.keys, claim.limit, taken) if limits.keys else None
            if tokens is None:
                kept.append(claim)
            elif tokens:
                limits.tokens.extend(tokens)
                kept.append(msgspec.structs.replace(claim, limit=len(tokens)))
            else:
                key = self._limiter.stopped(limits.keys) or limits.keys[0]
                self._rules.park_until(key, self._limiter.seconds(key))
                self.book.park(lane, key)
        return kept

    async def _tokens_for_lapsed(self) -> bool:
        """Let mail go on that missed its moment, as far as there are new tokens."""
        if not self._lapsed:
            return False
        jobs, self._lapsed = self._lapsed, []
        at = 0
        try:
            for at, job in enumerate(jobs):
                keys = self._limiter.keys(job.lease.tenant, job.relay, job.lane.site)
                await self._limiter.fetch({keys: len(jobs) - at})
                tokens = self._limiter.reserve(keys, 1) if keys else None
                if tokens is not None and not tokens:
                    if self._limiter.long(keys):
                        self._returned.append((job.lease, None))
                    else:
                        self._lapsed.append(job)
                    continue
                self._let_go(job, _Under(job.relay, keys, tokens or ()))
        except BaseException:
            self._lapsed += jobs[at:]  # they are leased: forgotten here, nobody would give them back
            raise
        return len(self._lapsed) < len(jobs)

    async def _withdraw(self) -> None:
        """Give back what waits for connections that this worker has no permit for any more."""
        for gate in self._limiter.shut():
            self._returned.extend((job.lease, None) for job in self._outbox.withdraw(gate))
        if self._returned:
            await self._return_leases()

    async def _obey_pauses(self) -> None:
        """Give back what was claimed and is paused by now."""
        if not self._rules.any_pause:
            return
        paused = self._rules.paused
        late, self._lapsed = self._lapsed, []
        stopped = self._outbox.take(lambda job: paused(job.lane) is not None)
        for job in late:
            (self._lapsed if paused(job.lane) is None else stopped).append(job)
        self._returned.extend((job.lease, paused(job.lane)) for job in stopped)
        unloaded, self._unloaded = self._unloaded, []
        for tenant, lease in unloaded:
            why = paused(self.book.get(tenant, lease.lane))
            if why is None:
                self._unloaded.append((tenant, lease))
            else:
                self._returned.append((lease, why))
        if self._returned:
            await self._return_leases()

    async def _prepare(self, batches: list[tuple[int, list[Lease]]]) -> list[Job]:
        """Fetch what the rows need. Without the database they go back."""
        loads: list[tuple[int, str, list[Lease]]] = []
        for tenant, leases in batches:
            by_stream: dict[str, list[Lease]] = {}
            streams = {id_: self.book.get(tenant, id_).stream for id_ in {lease.lane for lease in leases}}
            for lease in leases:
                by_stream.setdefault(streams[lease.lane], []).append(lease)
            loads += [(tenant, stream, mine) for stream, mine in by_stream.items()]
        if not loads:
            return []
        try:
            policies = [await self._rules.policy(tenant, stream) for tenant, stream, _ in loads]
            found = await self._library.load(loads)
        except BaseException as error:
            self._returned.extend((lease, None) for _, _, leases in loads for lease in leases)
            if isinstance(error, DatabaseAway):
                return []
            raise
        jobs = []
        for (tenant, _, leases), policy, contents in zip(loads, policies, found, strict=True):
            lanes = {id_: self.book.get(tenant, id_) for id_ in {lease.lane for lease in leases}}
            for lease in leases:
                content = contents.get(lease.id, _NOTHING)
                if content is None:
                    self._unloaded.append((tenant, lease))
                else:
                    jobs.append(Job(lease, lanes[lease.lane], policy, *content))
        return jobs

    async def _load_rest(self) -> None:
        """Fetch the content of claimed mail that there was no memory for, the most urgent first."""
        if not self._unloaded or self._crowded:
            return
        rest, self._unloaded = self._unloaded, []
        rest.sort(key=lambda one: self.book.get(one[0], one[1].lane).priority)
        tenants: dict[int, list[Lease]] = {}
        for tenant, lease in rest:
            tenants.setdefault(tenant, []).append(lease)
        for job in await self._prepare(list(tenants.items())):
            relay = self._rules.relay(job.lane)
            if relay is None:
                self._returned.append((job.lease, None))
                continue
            # What it had been given to go by is long over.
            job.relay = relay
            self._lapsed.append(job)

    def _look_at_relays(self) -> None:
        """Probe relays that are blocked, once their wait is over."""
        for probe in [probe for probe in self._probes if probe.done()]:
            self._probes.discard(probe)
            probe.result()  # raises what it crashed of
        # Beside the claiming and beside each other: a probe of a host that says nothing takes minutes.
        self._probes |= {
            asyncio.create_task(self._try_relay(name), name=f"probe {name}")
            for name in self._relays.to_probe()
        }

    async def _try_relay(self, name: str) -> None:
        if await self._relays.probe_one(name):
            self._rules.free(self.book)
            self.book.wake_all()
            self._wake.set()

    async def _refresh(self, now: float, *, wake: bool) -> None:
        complete = now - self._completed_at >= COMPLETE_SECONDS or self.book.version is None
        version = None if complete or self.book.version is None else self.book.version
        rows, time_ = await work.fold_and_refresh(self._database, version)
        self.book.time_is(time_)
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
        # Only who hears is announced: nobody need notify the others, and a prepared transaction must not.
        hears = self._listener is not None and self._listener.hearing
        await self._presence.set_asleep(asleep and hears)

    @property
    def _deaf(self) -> bool:
        """Whether it should be notified and is not, for there is a pooler in between: nobody need try."""
        return self._listener is not None and not self._listener.hearing

    async def _nap(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), seconds)

    async def _return_leases(self) -> None:
        """Give back what slots returned, by tenant and reason."""
        groups: dict[tuple[int, str | Delay | None], list[Lease]] = {}
        taken = len(self._returned)
        for lease, reason in list(self._returned)[:taken]:
            groups.setdefault((lease.tenant, reason), []).append(lease)
        kept: list[tuple[Lease, str | Delay | None]] = []
        for (tenant, reason), leases in groups.items():
            self.given_back += len(leases)
            if isinstance(reason, Delay):
                back = await work.postpone(
                    self._database, tenant, self._presence.epoch, leases,
                    seconds=reason.seconds, reason=reason.why,
                )  # fmt: skip
            else:
                back = await work.release(self._database, tenant, self._presence.epoch, leases, reason)
            if len(back) < len(leases):
                # A row that another transaction has locked (a cancel that came too late) is still ours: once more.
                ours = await work.still_leased(self._database, tenant, self._presence.epoch, leases)
                kept += [(lease, reason) for lease in leases if lease.id in ours]
        for _ in range(taken):
            self._mine.discard(self._returned.popleft()[0].id)
        self._returned.extend(kept)
        self._mine.update([lease.id for lease, _ in kept])
        if groups:
            # Our own heads have passed these rows; the rewind reaches us with the lanes.
            self._refreshed_at = 0.0

    def _take_back(self, leases: Iterable[Lease]) -> None:
        for lease in leases:
            self._mine.add(lease.id)
            self._returned.append((lease, None))

    async def _find_lost(self) -> None:
        """Look for leases that we do not know of: the answer of a claim was lost, and its rows never reached us.

        More than once, because the server may have been at it when the connection broke.
        """
        now = time.monotonic()
        while self._unsure and min(self._unsure)[0] <= now:
            due = min(self._unsure)
            held = await work.held_by(self._database, due[1], self._presence.epoch, due[2])
            self._unsure.remove(due)
            if lost := [lease for lease in held if lease.id not in self._mine]:
                _log.warning("claim.answer_lost", leases=len(lost))
                self._take_back(lost)

    async def hand_back(self) -> None:
        """Return what no slot has begun, and what slots gave back: on drain, and once more after it."""
        waiting = [*self._outbox.take_all(), *self._lapsed]
        self._lapsed = []
        self._returned.extend((job.lease, None) for job in waiting)
        self._returned.extend((lease, None) for _, lease in self._unloaded)
        self._unloaded = []
        try:
            await self._return_leases()
        except DatabaseAway as error:
            _log.warning("drain.kept_leases", error=str(error), leases=len(self._returned))


class _Under:
    """What a claimed lane goes by: its relay, its limits, the tokens reserved for it."""

    __slots__ = ("keys", "relay", "tokens")

    def __init__(self, relay: str, keys: tuple[Key, ...], tokens: Iterable[Token] = ()) -> None:
        self.relay, self.keys = relay, keys
        self.tokens = deque(tokens)
