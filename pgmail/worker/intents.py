"""Commits the intent to send before the end of data, on streams that hold what is in doubt; many mails at a time.

A mail's body may be on the wire by then, its end waits for `commit`: a few milliseconds to gather the intents of all
slots, and one statement. If the commit fails, or the lease was fenced out meanwhile, `commit` raises `Withheld`
and the mail does not go out; nobody tries the statement again, because a server waits at the other end of the line.
A row that another transaction holds (a cancel that came too late) is asked for again for a short while.

What can go wrong: the answer of a commit is lost. The mail is withheld and its lease given back; should the worker
die before that, the mail is held in doubt although it was not sent, which a person can see and resolve.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import structlog

from pgmail.errors import DatabaseAway, PgmailError
from pgmail.service import Loop, first_of
from pgmail.store import work
from pgmail.store.database import Database
from pgmail.store.faults import FencedOut
from pgmail.store.work import Lease
from pgmail.transport.base import Withheld

_log = structlog.get_logger()

COMMIT_SECONDS = (
    10.0  # of one statement; a server that waits for the end of data is more patient (RFC 5321, 4.5.3.2)
)
LOCKED_SECONDS = 2.0  # that a row may stay locked by another transaction
LOCKED_PAUSE = 0.02
FAILED = "the intent to send it could not be committed"
LOST = "the lease was lost, or another transaction holds its row"
SILENT = "this worker stops, or was silent for so long that others may count it as dead"


class Uncommitted(Withheld):
    """The database did not take an intent, and may not take the next one either: no need to hurry with it."""


class _Intent:
    """One mail that waits for its commit. `answer` is what stands against it, or None: it may go out."""

    __slots__ = ("answer", "lease", "relay", "until")

    def __init__(self, lease: Lease, relay: str, loop: asyncio.AbstractEventLoop) -> None:
        self.lease, self.relay = lease, relay
        self.answer: asyncio.Future[Withheld | None] = loop.create_future()
        self.until = loop.time() + LOCKED_SECONDS

    def end(self, against: Withheld | None) -> None:
        if not self.answer.done():
            self.answer.set_result(against)


class Intents(Loop):
    """Collects intents and commits them. `commit` is for transports to await right before the end of data."""

    def __init__(
        self, database: Database, epoch: Callable[[], int], *, interval_ms: int, batch: int,
        fresh: Callable[[], bool],
    ) -> None:  # fmt: skip
        """`fresh` tells whether this worker is surely alive to others."""
        super().__init__("intents")
        self._database, self._epoch, self._fresh = database, epoch, fresh
        self._seconds, self._batch = interval_ms / 1000, batch
        self._waiting: list[_Intent] = []
        self._some, self._full = asyncio.Event(), asyncio.Event()
        self._over = False

    async def commit(self, lease: Lease, relay: str) -> None:
        """Return once the intent to send a lease to a relay is committed. Raises Withheld: do not send it.

        `Uncommitted` where that is not for this lease or worker alone.
        """
        if self._over or not self._fresh():
            raise Withheld(SILENT)
        intent = _Intent(lease, relay, asyncio.get_running_loop())
        self._waiting.append(intent)
        self._some.set()
        if len(self._waiting) >= self._batch:
            self._full.set()
        against = await intent.answer
        if against is not None:
            raise against
        if not self._fresh():
            raise Withheld(SILENT)

    async def run(self) -> None:
        """Commit until drained and empty; then refuse what still waits."""
        self.ready()
        try:
            while not (self.draining.is_set() and not self._waiting):
                if not self._waiting:
                    await first_of(self._some.wait(), self.draining.wait())
                    continue
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._full.wait(), self._seconds)
                self._some.clear()
                self._full.clear()
                await self._flush()
        finally:
            self._over = True
            for intent in self._waiting:
                intent.end(Withheld(SILENT))
            self._waiting.clear()

    async def _flush(self) -> None:
        intents = [intent for intent in self._waiting if not intent.answer.done()]  # others were cancelled
        self._waiting = []
        try:
            for start in range(0, len(intents), self._batch):
                await self._commit(intents[start : start + self._batch])
        finally:
            again = set(self._waiting)
            for intent in intents:
                if intent not in again:
                    intent.end(Uncommitted(FAILED))
        if self._waiting:
            await asyncio.sleep(LOCKED_PAUSE)

    async def _commit(self, intents: list[_Intent]) -> None:
        tenants: dict[int, list[_Intent]] = {}
        for intent in intents:
            tenants.setdefault(intent.lease.tenant, []).append(intent)
        batches = [(tenant, [(x.lease, x.relay) for x in mine]) for tenant, mine in tenants.items()]
        try:
            async with asyncio.timeout(COMMIT_SECONDS):
                answers = await work.begin_each(self._database, self._epoch(), batches)
        except (DatabaseAway, TimeoutError) as error:
            _log.warning("intent.failed", error=str(error) or "it took too long", mails=len(intents))
            return
        except FencedOut:
            raise
        except PgmailError as error:
            _log.warning("intent.refused", error=str(error), mails=len(intents))
            return
        now = asyncio.get_running_loop().time()
        for mine, answer in zip(tenants.values(), answers, strict=True):
            for intent in mine:
                said = answer.get(intent.lease.id)
                if said == "locked" and now < intent.until:
                    self._waiting.append(intent)
                else:
                    intent.end(None if said == "begun" else Withheld(LOST))
