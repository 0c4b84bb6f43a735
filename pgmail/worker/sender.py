"""From a lease to a settlement: render, send, judge. One slot a mail at a time, `concurrency` slots a process.

Nothing here touches the queue: a slot hands its finding to the settler, or gives the lease back. A fault of
ours while making a mail (a template, a missing asset) is a dead letter; a relay that is away is a delay.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any
from uuid import UUID
from weakref import WeakSet

import structlog

from pgmail.domain.reply import Envelope, Phase, Result
from pgmail.errors import DatabaseAway, KeyMissing, PgmailError, SealBroken, TemplateFault
from pgmail.render.mime import Wire
from pgmail.store.work import Barred, Lease
from pgmail.transport.base import TooLate, Transport, Withheld
from pgmail.transport.sandbox import SandboxTransport
from pgmail.worker.apart import Render
from pgmail.worker.content import Impossible, Library
from pgmail.worker.deliveries import Deliveries
from pgmail.worker.heavy import HeavyRoom
from pgmail.worker.intents import SILENT, Uncommitted
from pgmail.worker.job import Delay, Job
from pgmail.worker.judge import GiveBack, Judge
from pgmail.worker.lanes import Lane
from pgmail.worker.relays import Relays
from pgmail.worker.settler import Settler
from pgmail.worker.slowing import Slowing
from pgmail.worker.staging import NONE, NOT_ALLOWED, TEST_RELAY, Staging
from pgmail.worker.ward import Crashed, Ward, WardAway

_log = structlog.get_logger()

Begin = Callable[[Lease, str], Awaitable[None]]

NOT_EIGHTBIT = "5.6.3"  # RFC 3463, section 3.7: conversion required and not supported
SENT_APART = (
    2  # workers that died with a mail although it could be rendered: it is sent from a process apart, too
)
LOOKED_UP_SECONDS = 1.0  # after which a suppression may have come that this worker has not seen
KEPT_BYTES = 64 * 1024 * 1024  # of mail that was made and missed its moment; one is kept whatever its size
UNCOMMITTED_SECONDS = 0.1, 5.0  # a mail waits whose intent the database did not take
UNCOMMITTED_TOLD = 1.0  # seconds that this has lasted, when the mail tells of it
KEY_SECONDS, KEY_MOST = 60.0, 900.0  # a sealed mail waits whose key no worker has: twice as long each time
HEAVY = frozenset({"too_slow", "too_big"})  # faults of a template that a process apart may not find
KNOWN_HEAVY = 10_000
WARD_SECONDS = 5.0  # a mail waits when no process apart can be started


class Sender:
    """Sends jobs. Shared by all slots of a process."""

    def __init__(
        self,
        library: Library,
        relays: Relays,
        settler: Settler,
        give_back: GiveBack,
        worker: Callable[[], int],
        *,
        fresh: Callable[[], bool] = lambda: True,
        present: Callable[[], datetime],
        lapsed: Callable[[Job], None],
        begin: Begin | None = None,
        ward: Ward | None = None,
        slowing: Slowing | None = None,
        staging: Staging = NONE,
        heavy: HeavyRoom | None = None,
        paused: Callable[[Lane], str | None] = lambda _lane: None,
        deliveries: Deliveries | None = None,
    ) -> None:
        """`fresh` tells whether this worker is surely alive to others; it begins no mail otherwise.

        `present` is the database's time: what expires, and how old a mail is, must not hang on this machine's clock.
        `lapsed` takes mail back that missed the moment its tokens were for. `begin` commits the intent to send a
        lease to a relay, or raises Withheld; without it, mail that needs one is not sent. `ward` is where mail is
        made that a worker died with, or that is too heavy to be made between others, as far as `heavy` has room;
        without one it is made here, as any other. `paused` tells why a lane stands still. `deliveries` takes
        note of what happens.
        """
        self._library, self._relays, self._settler = library, relays, settler
        self._give_back, self._worker, self._fresh = give_back, worker, fresh
        self._lapsed, self._begin, self._ward, self._present = lapsed, begin, ward, present
        # Made, and late by the time they were (`Job.wire`). Made anew at its next moment one would be late again, for
        # ever. Forgotten where the job ends.
        self._kept: WeakSet[Job] = WeakSet()
        self._uncommitted_since = 0.0  # monotonic; 0 while intents are committed
        self._staging, self._paused = staging, paused
        self._unkept = SandboxTransport()
        self._heavy = HeavyRoom(1) if heavy is None else heavy
        self._known_heavy: OrderedDict[UUID, None] = OrderedDict()  # messages: not tried here again
        self.deliveries = Deliveries() if deliveries is None else deliveries
        self._judge = Judge(
            relays, settler, give_back, worker,
            present=present, slowing=slowing, staging=staging, deliveries=self.deliveries,
        )  # fmt: skip

    @property
    def withheld(self) -> int:
        """Mails whose end of data was not sent, at our own wish."""
        return self.deliveries.withheld

    async def send(self, job: Job) -> None:
        """Bring one job to its end: a settlement, or the lease given back."""
        if not self.deliveries.traces(job):
            await self._send(job)
            return
        waited = max(0.0, (self._present() - job.lease.due_at).total_seconds())
        self.deliveries.begin(job, waited, self._worker())
        try:
            await self._send(job)
        finally:
            self.deliveries.end(job)

    async def _send(self, job: Job) -> None:
        lease = job.lease
        if job.message is None or job.person is None:
            self._settle(job, "dead", reason="poison", error="its content is gone or cannot be read")
            return
        if not self._fresh():
            await self._give_back(lease, None)  # others may count us as dead by now, and send it themselves
            return
        if (why := self._paused(job.lane)) is not None:
            await self._give_back(lease, why)  # paused since it was claimed
            return
        if job.person.suppressed is not None:
            self._settle(job, "suppressed", reason=job.person.suppressed)
            return
        test = job.relay == TEST_RELAY
        if job.message.row.test is not test:
            # It cannot be: a test has lanes of its own. Whichever of the two is wrong, nobody gets it unasked.
            _log.error("mail.misrouted", id=str(lease.id), message=str(lease.message_id), test=not test)
            why = "its lane and its message differ on whether it is a test"
            self._settle(job, "held", reason=why, error="this is a fault of pgmail, please report it")
            return
        if not test and self._staging.refuses(job.person.address):
            self._settle(job, "suppressed", reason=NOT_ALLOWED, error="PGMAIL_ALLOWED_RECIPIENTS")
            return
        if lease.expires_at is not None and lease.expires_at <= self._present():
            self._settle(job, "expired", reason="expires_at passed before it was sent")
            return
        if job.person.barred is not None:
            await self._bar(job, job.person.barred)
            return
        if job.until and self._late(job):
            return
        transport = self._relays.get(job.relay)
        if transport is None or self._relays.blocked(job.relay):
            # It was claimed before the relay was found away, or names a relay that this process has not.
            reason = None if transport else f"relay {job.relay} is not configured in this worker"
            await self._give_back(lease, reason)
            return
        eightbit = self._relays.eightbit(job.relay)
        while True:
            wire = job.wire
            if wire is not None:
                job.wire = None
                self._kept.discard(job)
            if wire is None or wire.eightbit > eightbit:
                began = time.monotonic()
                wire = await self._wire(job, eightbit=eightbit)
                if wire is None:
                    return
                self.deliveries.made(job, began)
                if job.until and self._late(job):  # what it needed had to be fetched, or it is big
                    self._keep(job, wire)
                    return
            began = time.monotonic()
            if began - job.loaded_at > LOOKED_UP_SECONDS and await self._stopped(job):
                return
            result = await self._deliver(job, transport, wire)
            if result is None:
                return
            self.deliveries.delivered(job, result, began)
            if not (wire.eightbit and result.reply is not None and result.reply.enhanced == NOT_EIGHTBIT):
                break
            if result.phase not in (Phase.MAIL, Phase.RCPT, Phase.DATA):
                break
            eightbit = False  # another host of the same relay, which does not take what the last one did
        await self._judge.judge(job, result)

    async def _deliver(self, job: Job, transport: Transport, wire: Wire) -> Result | None:
        """Hand it over; None where it was given back, waits for its next moment, or was settled."""
        lease = job.lease
        assert job.message is not None and job.person is not None  # noqa: S101, PT018 - looked at by `send`
        rcpt, body, redirect = job.person.rcpt, wire.body, self._staging.redirect_to
        if redirect and job.relay != TEST_RELAY:
            body, rcpt = self._staging.body(rcpt, body), redirect
        if job.relay == TEST_RELAY and job.message.row.key_id is not None:
            transport = self._unkept  # what is sealed lies nowhere in the clear
        envelope = Envelope(
            sender=job.message.content.sender.address, recipient=rcpt, body=body,
            smtputf8=wire.smtputf8 or not rcpt.isascii(), eightbit=wire.eightbit,
            not_after=job.until or None,
        )  # fmt: skip
        # The sandbox sends nothing: there is no remote side that could crash anyone.
        ward = self._ward if lease.rescues >= SENT_APART and job.relay != TEST_RELAY else None
        # A transport apart knows nothing of this worker: it always asks.
        intent = (
            _Intent(self._begun, self._fresh, lease, job.relay) if lease.vowed or ward is not None else None
        )
        try:
            if intent is None:
                return await transport.deliver(envelope)
            if ward is not None:
                return await ward.deliver(job.relay, envelope, intent, transport)
            return await transport.deliver(envelope, intent)
        except TooLate:  # it waited for a connection, or for a process apart
            self._keep(job, wire)
            self._lapsed(job)
        except Withheld as why:
            await self._withhold(job, why)
        except Crashed as crashed:
            began = intent is None or intent.committed
            self._crashed(job, crashed, "sending", began=True, doubt=began, relay=job.relay)
        except WardAway as away:
            await self._wait_for_ward(job, away)
        except Exception as fault:  # noqa: BLE001
            # Transports return what remotes do; this is a fault of ours, at a moment that nobody knows: in doubt,
            # unless the end of data was not allowed yet.
            at = "".join(traceback.format_tb(fault.__traceback__))
            _log.error(
                "mail.transport_failed", id=str(lease.id), message=str(lease.message_id),
                fault=type(fault).__name__, at=at,
            )  # fmt: skip
            phase = Phase.DOT if intent is None or intent.committed else Phase.BODY
            return Result(phase=phase, error=f"{type(fault).__name__}: {fault}")
        return None

    async def _bar(self, job: Job, barred: Barred) -> None:
        """End a sealed mail that nobody can open; let one wait whose key another process, or a later one, has."""
        lease = job.lease
        if barred.broken:
            _log.error(
                "mail.seal_broken",
                id=str(lease.id),
                message=str(lease.message_id),
                tenant=lease.tenant,
                error=barred.why,
            )
            self._settle(job, "dead", reason="seal_broken", error=barred.why)
            return
        _log.warning(
            "mail.key_missing",
            id=str(lease.id),
            message=str(lease.message_id),
            tenant=lease.tenant,
            error=barred.why,
        )
        seconds = min(KEY_MOST, KEY_SECONDS * 2 ** min(max(lease.claims - 1, 0), 10))
        await self._give_back(lease, Delay(barred.why, seconds))

    async def _withhold(self, job: Job, why: Withheld) -> None:
        """Give a mail back whose end of data was not sent, at our own wish."""
        self.deliveries.withheld += 1
        _log.warning(
            "mail.withheld", id=str(job.lease.id), message=str(job.lease.message_id), reason=str(why)
        )
        if not isinstance(why, Uncommitted):
            await self._give_back(job.lease, None)
            return
        # Its body would be written again and again, to no end. Once is an accident that costs next to nothing; the
        # longer it lasts the longer they wait, each with its slot.
        now = time.monotonic()
        if not self._uncommitted_since:
            self._uncommitted_since = now
        lasted = now - self._uncommitted_since
        least, most = UNCOMMITTED_SECONDS
        await asyncio.sleep(min(max(lasted, least), most))
        reason = f"its stream holds what is in doubt, and {why}" if lasted >= UNCOMMITTED_TOLD else None
        await self._give_back(job.lease, reason)

    async def _begun(self, lease: Lease, relay: str) -> None:
        """Commit the intent to send a lease."""
        if self._begin is None:
            raise Uncommitted("nobody commits intents here")
        await self._begin(lease, relay)
        self._uncommitted_since = 0.0

    async def _stopped(self, job: Job) -> bool:
        """Look up again whether a mail that waited here may go. True if not: it is settled, or given back."""
        person = job.person
        if person is None:
            return False
        try:
            reason = await self._library.suppressed(job.lease.tenant, job.lane.stream, person)
        except DatabaseAway:
            await self._give_back(job.lease, None)
            return True
        job.loaded_at = time.monotonic()
        if reason is not None:
            self._settle(job, "suppressed", reason=reason)
        return reason is not None

    def _late(self, job: Job) -> bool:
        """Hand a mail back whose tokens' moment has passed. True if it has."""
        if not job.until or time.monotonic() <= job.until:
            return False
        self._lapsed(job)
        return True

    def _keep(self, job: Job, wire: Wire) -> None:
        """Keep the bytes of a mail for its next moment, within bounds.

        What finds no room is made again; those that are kept leave, so there will be room for it.
        """
        if job.message is not None and wire is job.message.shared:
            return  # kept with its message, once for all
        held = sum(len(other.wire.body) for other in self._kept if other.wire is not None)
        if not held or held + len(wire.body) <= KEPT_BYTES:
            job.wire = wire
            self._kept.add(job)

    async def _wire(self, job: Job, *, eightbit: bool) -> Wire | None:
        """The mail's bytes; None where it cannot be made, which is settled, or not now: its lease is given back."""
        lease = job.lease
        assert job.message is not None and job.person is not None  # noqa: S101, PT018 - looked at by `send`
        try:
            if self._ward is not None and (lease.rescues or job.message.suspect):
                apart = await self._wire_apart(self._ward, job, eightbit=eightbit)
                # So it is not what its recipients share. What is in their own variables stays with those that a worker
                # died with; all others of a mailing need not go by a few processes because of these.
                job.message.clear()
                return apart
            if self._ward is not None and (
                lease.message_id in self._known_heavy or self._library.dear(lease.tenant, job.message)
            ):
                return await self._wire_heavy(self._ward, job, eightbit=eightbit)
            try:
                wire = self._library.wire_now(lease.tenant, job.message, job.person, eightbit=eightbit)
                if wire is None:
                    wire = await self._library.wire(lease.tenant, job.message, job.person, eightbit=eightbit)
            except TemplateFault as fault:
                if self._ward is None or fault.kind not in HEAVY:
                    raise
                self._known_heavy[lease.message_id] = None
                if len(self._known_heavy) > KNOWN_HEAVY:
                    self._known_heavy.popitem(last=False)
                return await self._wire_heavy(self._ward, job, eightbit=eightbit)
        except (TemplateFault, Impossible) as fault:
            # The words of a template's fault may hold a variable's value, which belongs to the mail, not to a log; and
            # where the mail is sealed, not to the record either.
            closed = fault.place if isinstance(fault, TemplateFault) else str(fault)
            _log.warning("mail.impossible", id=str(lease.id), message=str(lease.message_id), error=closed)
            sealed = job.message.row.key_id is not None
            self._settle(job, "dead", reason="template", error=closed if sealed else str(fault))
            return None
        except SealBroken as fault:
            await self._bar(job, Barred(str(fault), broken=True))
            return None
        except KeyMissing as fault:
            await self._bar(job, Barred(str(fault), broken=False))
            return None
        except DatabaseAway:
            await self._give_back(lease, None)
            return None
        except Crashed as crashed:
            self._crashed(job, crashed, "rendering", began=False)
            return None
        except WardAway as away:
            await self._wait_for_ward(job, away)
            return None
        except PgmailError:
            raise
        except Exception as fault:  # noqa: BLE001
            # A fault of ours that this mail brings out. It must not end the worker, which holds others too.
            # What it says may quote the mail; where it happened does not.
            name, at = type(fault).__name__, "".join(traceback.format_tb(fault.__traceback__))
            _log.error("mail.poison", id=str(lease.id), message=str(lease.message_id), fault=name, at=at)
            sealed = job.message.row.key_id is not None
            self._settle(job, "dead", reason="poison", error=name if sealed else f"{name}: {fault}")
            return None
        return wire

    async def _wire_heavy(self, ward: Ward, job: Job, *, eightbit: bool) -> Wire | None:
        """Make a mail apart that takes long; None where there is no room for it, and it waits in the queue."""
        lease = job.lease
        if self._heavy.has_room(lease.tenant):
            async with self._heavy.place(lease.tenant, lease.id):
                return await self._wire_apart(ward, job, eightbit=eightbit)
        why = "its template takes long, and so do others: it waits its turn"
        await self._give_back(lease, Delay(why, self._heavy.put_off(lease.tenant, lease.id)))
        return None

    async def _wire_apart(self, ward: Ward, job: Job, *, eightbit: bool) -> Wire:
        """Make a suspect's bytes in a process apart. Raises as `Ward.render`."""
        message, person = job.message, job.person
        assert message is not None and person is not None  # noqa: S101, PT018 - looked at by `send`
        self.deliveries.heavy += 1
        bundle = await self._library.sources(job.lease.tenant, message)
        return await ward.render(
            Render(
                message.row,
                message.domain,
                person,
                message.parts or (),
                bundle,
                eightbit,
                self._library.subject_prefix,
            )
        )

    def _crashed(self, job: Job, crashed: Crashed, at: str, **facts: Any) -> None:
        """Quarantine what crashed a process that had this mail and no other."""
        lease = job.lease
        _log.error("mail.poison", id=str(lease.id), message=str(lease.message_id), at=at, error=str(crashed))
        error = f"{at} it alone, in a process apart, {crashed}; workers that died while they held it: {lease.rescues}"
        if facts.get("doubt") and job.stream.on_doubt == "hold":
            # Who retries a dead letter sends it again without a word; here a person decides, knowing that.
            why = f"in doubt: {at} it crashed a process apart when it may have been sent already"
            settlement = job.settlement("held", reason=why, error=error, **facts)
        else:
            settlement = job.settlement("dead", reason="poison", error=error, **facts)
        self._settler.add(lease.tenant, settlement)

    async def _wait_for_ward(self, job: Job, away: WardAway) -> None:
        _log.error("ward.away", id=str(job.lease.id), error=str(away))
        await asyncio.sleep(WARD_SECONDS)  # else it would be claimed and given back all the time
        await self._give_back(job.lease, f"a worker died with it, and it cannot be tried apart: {away}")

    def _settle(self, job: Job, kind: str, **facts: Any) -> None:
        """Settle a mail that the remote side was never asked about."""
        self._settler.add(job.lease.tenant, job.settlement(kind, began=False, **facts))


class _Intent:
    """What a transport awaits right before the end of data of one mail. `committed` once it was let on."""

    __slots__ = ("_begin", "_fresh", "_lease", "_relay", "committed")

    def __init__(self, begin: Begin, fresh: Callable[[], bool], lease: Lease, relay: str) -> None:
        self._begin, self._fresh, self._lease, self._relay = begin, fresh, lease, relay
        self.committed = False

    async def __call__(self) -> None:
        if self._lease.vowed:
            await self._begin(self._lease, self._relay)
        if not self._fresh():
            raise Withheld(SILENT)
        self.committed = True
