"""One worker process: its parts, wired. `run_worker` runs them until told to stop, then drains.

    presence   its row and beat            claimer -> outbox -> slots (sender, intents) -> settler
    listener   wakes the claimer           rules, limiter, relays   what may go now, and by whom
    witness    notices a restored database: then nothing may go
    leader     given from outside: any worker can lead

Stopping drains: claim nothing, let what is on the wire finish within `drain_seconds`, give the rest back, write
what is known. A worker that was declared dead does not drain: what is not sent is called back at once, and what is
sent is waited for, for a moment, and recorded. Connections: 1 to 3 from the pool, the listener's own,
and one for the beat alone: a worker that is busy with large attachments must not look dead. So 3 or 4 at rest, at
most 5 under load.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from uuid import UUID

import structlog

from pgmail.config import Settings
from pgmail.metrics.counts import Names, Source
from pgmail.metrics.listener import Listener as MetricsListener
from pgmail.metrics.page import Page
from pgmail.sealing import keks
from pgmail.seals import Opener
from pgmail.service import Service, run_all
from pgmail.store.database import Database
from pgmail.store.history import Witness
from pgmail.store.listen import Listener
from pgmail.store.presence import Presence
from pgmail.tracing import start as start_tracing
from pgmail.transport.base import Transport
from pgmail.transport.relay import SmtpRelay
from pgmail.transport.sandbox import SandboxTransport
from pgmail.worker.charges import Charges
from pgmail.worker.claimer import Claimer
from pgmail.worker.content import QUICK, Bounds, Library
from pgmail.worker.deliveries import Deliveries
from pgmail.worker.heavy import HeavyRoom
from pgmail.worker.intents import Intents
from pgmail.worker.limiter import Limiter
from pgmail.worker.outbox import Outbox
from pgmail.worker.relays import Relays
from pgmail.worker.rules import Rules
from pgmail.worker.sender import Sender
from pgmail.worker.settler import Settler
from pgmail.worker.slots import Slots
from pgmail.worker.slowing import Slowing
from pgmail.worker.staging import Staging
from pgmail.worker.ward import Ward

_log = structlog.get_logger()

IDLE_SECONDS = (
    20.0  # after a burst each of the pool's connections but one is closed, so soon one after the other
)

HEAVY_AT_ONCE = 2  # mails that are made apart since they take long: processors that strangers may use
HEAVY_ROOM = 4  # every so many slots: one may wait for that
# A statement that takes longer counts as one on a connection that fell silent. Those on mail take milliseconds, a
# server that is overloaded takes seconds; the leader's may have a backlog of their own.
ANSWER_SECONDS = 30.0
UPKEEP_SECONDS = 600.0

MakeLeader = Callable[[Database, Presence], tuple[Service, Callable[[], bool]]]
Beside = Callable[[Database, Callable[[], bool]], list[Service]]


async def run_worker(
    settings: Settings,
    transports: Mapping[str, Transport],
    *,
    until: asyncio.Event,
    make_leader: MakeLeader,
    dsn: str,
    concurrency: int,
    ward: Ward | None = None,
    beside: Beside | None = None,
) -> None:
    """Run one worker process until `until` is set; raises what it crashed of (`FencedOut` when declared dead).

    `ward` is where mail is made that a worker died with; it is closed at the end. `beside` makes what else the
    process runs; it is given the pool, and what tells whether all slots have mail.
    """
    staging = Staging.of(settings)
    keys = keks.read(settings)
    witness = Witness("worker", settings.state_dir)
    database = Database(
        dsn,
        name="pgmail worker",
        low=1,
        high=max(3, settings.worker_pool_size),
        idle_seconds=IDLE_SECONDS,
        answer_seconds=ANSWER_SECONDS,
        greet=witness.greet,
    )
    beats = Database(
        dsn,
        name="pgmail beat",
        low=1,
        high=1,
        answer_seconds=settings.silence_seconds / 2,
        greet=witness.greet,
    )
    witness.watch(beats)
    presence = Presence(
        beats,
        program="worker",
        concurrency=concurrency,
        beat_ms=settings.beat_interval_ms,
        silence_seconds=settings.silence_seconds,
        staging=staging.words(),
        opens=keys.names,
    )

    def may_begin() -> bool:
        return presence.fresh and witness.fence is None

    outbox = Outbox(concurrency, time.monotonic)
    limiter = Limiter(database, lambda: presence.epoch, outbox, time.monotonic)
    for transport in transports.values():
        if isinstance(transport, SmtpRelay):
            transport.set_guard(may_begin)
    sandbox = SandboxTransport(Path(settings.test_folder) if settings.test_folder else None)
    relays = Relays(database, transports, outbox, sandbox)
    rules = Rules(
        database, relays, limiter, lambda: witness.clear, receiver=staging.redirect_domain, keys=keys.names
    )
    tracing = start_tracing(settings, "worker")
    library = Library(
        database,
        settings.message_id_domain,
        opener=Opener(database, keys),
        subject_prefix=staging.subject_prefix,
        # What takes longer is made apart, so that other mail need not wait; without a ward there is no apart.
        bounds=Bounds() if ward is None else QUICK,
        charges=None if ward is None else Charges(),
    )
    leader, leading = make_leader(database.patient(UPKEEP_SECONDS), presence)
    # By a lambda: the claimer, which it wakes, is made with it in hand.
    listener = Listener(dsn, lambda: claimer.wake()) if settings.notify else None  # noqa: PLW0108
    claimer = Claimer(
        database, presence, library=library, relays=relays, rules=rules, limiter=limiter, outbox=outbox,
        poll_ms=settings.poll_interval_ms, leading=leading, listener=listener,
    )  # fmt: skip

    def settled(ids: Collection[UUID]) -> None:
        claimer.freed(ids)
        witness.acted()

    settler = Settler(
        database, lambda: presence.epoch,
        interval_ms=settings.settle_interval_ms, batch=settings.settle_batch, settled=settled,
    )  # fmt: skip
    intents = Intents(
        database, lambda: presence.epoch, interval_ms=settings.intent_interval_ms, batch=settings.settle_batch,
        fresh=may_begin,
    )  # fmt: skip
    sender = Sender(
        library, relays, settler, claimer.give_back, lambda: presence.epoch,
        fresh=may_begin, present=claimer.book.present, lapsed=claimer.lapsed,
        begin=intents.commit, ward=ward, slowing=Slowing(database), staging=staging,
        paused=rules.paused, heavy=HeavyRoom(HEAVY_AT_ONCE, concurrency // HEAVY_ROOM),
        deliveries=Deliveries(Names(settings.metrics_sites.split()), tracing),
    )  # fmt: skip
    slots = Slots(sender, outbox, concurrency, relays.recall, claimer.hand_back)
    told = (presence, leader, claimer, outbox, sender.deliveries, settler, relays, database, beats)
    others = beside(database, lambda: claimer.out >= concurrency) if beside is not None else []
    parts: list[Service] = [
        MetricsListener(
            settings, Page("worker", [x for x in told if isinstance(x, Source)]), presence.health
        ),
        *(witness, presence, leader),
        *others,
        *(settler, intents, slots, claimer),
    ]
    if listener is not None:
        parts.append(listener)
    await database.open()
    await beats.open()
    _log.info("worker.starts", concurrency=concurrency, relays=sorted(transports))
    if staging:
        _log.warning("worker.staging", does=staging.words())
    try:
        await run_all(parts, until=until, drain_seconds=settings.drain_seconds)
    finally:
        await relays.close()
        if ward is not None:
            await ward.close()
        if tracing is not None:
            await tracing.close()
        await database.close()
        await beats.close()
        _log.info(
            "worker.stopped",
            epoch=presence.epoch,
            left=claimer.out,
            fenced=settler.fenced,
            withheld=sender.withheld,
        )
