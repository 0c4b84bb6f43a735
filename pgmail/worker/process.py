"""One worker process: its parts, wired. `run_worker` runs them until told to stop, then drains.

    presence   its row and beat            claimer -> slots (sender) -> settler
    listener   wakes the claimer           leader   given from outside: any worker can lead

Stopping drains: claim nothing, let what is on the wire finish within `drain_seconds`, give the rest back, write
what is known. Connections: 3 from the pool, the listener's own, and one
for the beat alone: a worker that is busy with large attachments must not look dead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import structlog

from pgmail.config import Settings
from pgmail.service import Service, run_all
from pgmail.store.database import Database
from pgmail.store.listen import Listener
from pgmail.store.presence import Presence
from pgmail.transport.base import Transport
from pgmail.worker.claimer import Claimer
from pgmail.worker.content import Library
from pgmail.worker.relays import Relays
from pgmail.worker.sender import Sender
from pgmail.worker.settler import Settler
from pgmail.worker.slots import Slots

_log = structlog.get_logger()

MakeLeader = Callable[[Database, Presence], tuple[Service, Callable[[], bool]]]


async def run_worker(
    settings: Settings,
    transports: Mapping[str, Transport],
    *,
    until: asyncio.Event,
    make_leader: MakeLeader,
    dsn: str,
    concurrency: int,
) -> None:
    """Run one worker process until `until` is set; raises what it crashed of (`FencedOut` when declared dead)."""
    database = Database(dsn, name="pgmail worker", low=1, high=max(3, settings.worker_pool_size))
    beats = Database(dsn, name="pgmail beat", low=1, high=1)
    presence = Presence(
        beats,
        program="worker",
        concurrency=concurrency,
        beat_ms=settings.beat_interval_ms,
        silence_seconds=settings.silence_seconds,
    )
    relays = Relays(database, transports)
    library = Library(database, settings.message_id_domain)
    leader, leading = make_leader(database, presence)
    claimer = Claimer(
        database, presence, library, relays,
        slots=concurrency, poll_ms=settings.poll_interval_ms, leading=leading,
    )  # fmt: skip
    settler = Settler(
        database, lambda: presence.epoch,
        interval_ms=settings.settle_interval_ms, batch=settings.settle_batch, settled=claimer.freed,
    )  # fmt: skip
    sender = Sender(
        library, relays, settler, claimer.give_back, lambda: presence.epoch, fresh=lambda: presence.fresh
    )
    slots = Slots(sender, claimer.jobs, concurrency)
    parts: list[Service] = [presence, leader, settler, slots, claimer]
    if settings.notify:
        parts.append(Listener(dsn, claimer.wake))
    await database.open()
    await beats.open()
    _log.info("worker.starts", concurrency=concurrency, relays=sorted(transports))
    try:
        await run_all(parts, until=until, drain_seconds=settings.drain_seconds)
    finally:
        await relays.close()
        await database.close()
        await beats.close()
        _log.info("worker.stopped", epoch=presence.epoch, left=claimer.out)
