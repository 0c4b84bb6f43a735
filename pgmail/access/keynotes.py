"""What is recorded of keys beside the requests: when each was used last and from where, and bursts of guesses.

Notes gather in memory and are written together every ten seconds, of one key at most once a minute. What can go
wrong: the database is away. Then the notes are kept for the next time; those of a process that is killed are
lost, which costs a minute of `last_used_at` and nothing else.
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

    async def _run(self) -> None:
        while True:
            await self._clock.sleep(EVERY_SECONDS)
            try:
                await self.flush()
            except Exception:
                log.exception("notes about keys failed")


def _use(key: UUID, now: float, tenant: int, at: float, origin: str | None) -> Use:
    address = read(origin)
    return Use(tenant, key, None if address is None else str(address), now - at)
