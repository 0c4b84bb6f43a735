"""A process among others: its worker row, its beat, whether it leads.

The beat is what keeps its leases. A process that cannot beat for half the fleet's patience must start no new
mail (`fresh` is false); one that was declared dead gets `FencedOut`, and starts over as a new worker.
"""

from __future__ import annotations

import asyncio
import math
import os
import socket
import time
from collections.abc import Iterator, Sequence

import structlog

from pgmail import sqlfiles
from pgmail.errors import DatabaseAway
from pgmail.metrics.counts import Sample
from pgmail.service import Loop
from pgmail.store import schema
from pgmail.store.database import Database
from pgmail.store.faults import FencedOut

_Q = sqlfiles.queries("presence")
_log = structlog.get_logger()

GOODBYE_SECONDS = 3.0


class Presence(Loop):
    """Keeps one worker row alive, from `start` until `stop`."""

    def __init__(
        self,
        database: Database,
        *,
        program: str,
        concurrency: int,
        beat_ms: int,
        silence_seconds: float,
        staging: str | None = None,
        opens: Sequence[str] | None = None,
    ) -> None:
        """`silence_seconds` is how long the rescuer waits before it declares a silent worker dead.

        `staging` is what this worker's settings make of mail, in words; it stands in its row. `opens` names the
        key-encryption keys that it opens sealed mail with; None for a process that sends no mail.
        """
        super().__init__("presence")
        self.epoch = 0
        # A beat that waits for longer proves nothing any more; the next one needs a connection that answers.
        self._database = database.patient(silence_seconds / 2)
        self._program = program
        self._concurrency = concurrency
        self._staging = staging
        self._opens = opens
        self._beat_seconds = beat_ms / 1000
        self._silence_seconds = silence_seconds
        self._beaten_at = 0.0
        self._asleep = False
        self._nudge = asyncio.Event()
        self._stopping = False
        self._leaving = False

    @property
    def fresh(self) -> bool:
        """Tell whether this worker may start mail: it beat recently enough to be surely alive to others."""
        return time.monotonic() - self._beaten_at < self._silence_seconds / 2

    def samples(self) -> Iterator[Sample]:
        """Whether it may start mail."""
        yield Sample("fresh", (), float(self.fresh))

    async def health(self) -> str | None:
        """What keeps this process from working, in words; None where nothing does."""
        if self.fresh:
            return None
        return "it could not tell the database lately that it is alive" if self.epoch else "it is starting"

    async def set_asleep(self, asleep: bool) -> None:
        """Ask to be notified, or no more. Returns once the database knows (at once if it knew)."""
        if asleep != self._asleep:
            self._asleep = asleep
            await self._beat()

    def leaving(self) -> None:
        """Let the next beat say that this worker drains: it takes nothing new, and goes."""
        self._leaving = True

    async def run(self) -> None:
        """Register, then beat until stopped. Waits for a database that is away."""
        await self._register()
        self.ready()
        while not self._stopping:
            try:
                await asyncio.wait_for(self._nudge.wait(), self._beat_seconds)
            except TimeoutError:
                try:
                    await self._beat()
                except DatabaseAway as error:
                    _log.warning("beat.failed", error=str(error))

    async def _register(self) -> None:
        pause = 0.1
        while True:
            try:
                await schema.require(self._database)
                row = await self._database.one(
                    _Q["start"],
                    {
                        "host": socket.gethostname(),
                        "pid": os.getpid(),
                        "program": self._program,
                        "concurrency": self._concurrency,
                        "staging": self._staging,
                    },
                )
                epoch = row.epoch if row else 0
                if self._opens is not None:
                    await self._database.run(_Q["opens"], {"epoch": epoch, "keks": list(self._opens)})
            except DatabaseAway as error:
                _log.warning("database.away", error=str(error), retry_seconds=pause)
                await asyncio.sleep(pause)
                pause = min(pause * 2, 5.0)
            else:
                self.epoch = epoch
                self._beaten_at = time.monotonic()
                return

    async def _beat(self) -> None:
        began = time.monotonic()
        state = "draining" if self._leaving or self.draining.is_set() else "running"
        row = await self._database.one(
            _Q["beat"], {"epoch": self.epoch, "state": state, "asleep": self._asleep and state == "running"}
        )
        if row is None or not row.alive:
            self._beaten_at = -math.inf  # what is under way stops before its end of data
            raise FencedOut(f"worker {self.epoch} was declared dead; its leases belong to others")
        self._beaten_at = began

    async def drain(self, timeout: float) -> bool:  # noqa: ASYNC109 - as in Service
        """Go on beating while others drain; `stop` says goodbye."""
        self.draining.set()
        return timeout >= 0

    async def stop(self) -> None:
        """Say goodbye, so that nobody waits for this worker's silence."""
        if self._stopping:
            return
        self._stopping = True
        self._nudge.set()
        await super().stop()
        if self.epoch:
            try:
                # It may have to wait for a row that an application has locked; the rescuer has more time.
                async with asyncio.timeout(GOODBYE_SECONDS):
                    await self._database.run(_Q["stop"], {"epoch": self.epoch})
            except (DatabaseAway, TimeoutError) as error:
                _log.warning("goodbye.failed", error=str(error) or "it took too long")


async def lead(database: Database, epoch: int, seconds: float) -> bool:
    """Take or keep the lead for so many seconds. True while leading."""
    row = await database.one(_Q["lead"], {"epoch": epoch, "seconds": seconds})
    return bool(row and row.leading)


async def beats(database: Database) -> dict[int, int]:
    """Every worker's beat counter, by epoch."""
    return {row.epoch: row.beat for row in await database.many(_Q["workers"])}
