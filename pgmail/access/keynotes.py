"""What is recorded of keys beside the requests: when each was used last and from where, and bursts of guesses.

Notes gather in memory and are written together every ten seconds, of one key at most once a minute. Failed tries
are shared with the other processes each second in which there were some. What can go wrong: the database is away.
Then the notes are kept for the next time; those of a process that is killed are lost, which costs a minute of
`last_used_at` and nothing else. Tries that could not be shared are forgotten: each process counts for itself then.
"""

from __future__ import annotations

import asyncio
import contextlib
from uuid import UUID

import structlog

from pgmail.access.guesses import MAX_BURSTS, Burst, Guesses
from pgmail.access.origin import read
from pgmail.clock import Clock
from pgmail.errors import PgmailError
from pgmail.store import keys
from pgmail.store.database import Database
from pgmail.store.keys import Caller, Use

log = structlog.get_logger()

EVERY_SECONDS = 10.0
SHARE_SECONDS = 1.0
KEY_SECONDS = 60.0
LAST_SECONDS = 2.0  # for the last notes of a process that ends


class KeyNotes:
    """Notes of one process."""

    def __init__(self, database: Database, guesses: Guesses, clock: Clock) -> None:
        self._database = database
        self._guesses = guesses
        self._clock = clock
        self._uses: dict[UUID, tuple[int, float, str | None]] = {}
        self._written: dict[UUID, float] = {}
        self._bursts: list[Burst] = []
        self._task: asyncio.Task[None] | None = None

    def used(self, caller: Caller, address: str | None) -> None:
        """Note that a key was used now."""
        self._uses[caller.key_id] = (caller.tenant_id, self._clock.monotonic(), address)

    async def start(self) -> None:
        """Write notes from now on."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Write what there is and stop."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        self._written.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_SECONDS):
                await self.flush()

    async def flush(self) -> None:
        """Write the notes that are due."""
        now = self._clock.monotonic()
        self._written = {key: at for key, at in self._written.items() if now - at < KEY_SECONDS}
        due = {key: use for key, use in self._uses.items() if key not in self._written}
        self._bursts = (self._bursts + self._guesses.bursts())[-MAX_BURSTS:]
        try:
            if due:
                await keys.note_uses(self._database, [_use(key, now, *use) for key, use in due.items()])
            for key, use in due.items():
                self._written[key] = now
                if self._uses.get(key) is use:
                    del self._uses[key]
            while self._bursts:
                await keys.note_guesses(self._database, self._bursts[-1].origin, self._bursts[-1].tries)
                self._bursts.pop()
        except PgmailError as error:
            log.info("notes about keys wait", error=str(error))

    async def share(self) -> None:
        """Tell the other processes of failed tries, and learn of theirs."""
        counts = self._guesses.fresh()
        if not counts:
            return
        try:
            self._guesses.learn(await keys.share_guesses(self._database, counts))
        except PgmailError as error:
            log.info("failed tries are not shared", error=str(error))

    async def _run(self) -> None:
        flush_at = self._clock.monotonic() + EVERY_SECONDS
        while True:
            await self._clock.sleep(SHARE_SECONDS)
            try:
                await self.share()
                if self._clock.monotonic() >= flush_at:
                    flush_at = self._clock.monotonic() + EVERY_SECONDS
                    await self.flush()
            except Exception:
                log.exception("notes about keys failed")


def _use(key: UUID, now: float, tenant: int, at: float, origin: str | None) -> Use:
    address = read(origin)
    return Use(tenant, key, None if address is None else str(address), now - at)
