"""Bearer keys (RFC 6750): whose request it is.

A key's hash is looked up in the database and the answer kept for a second, so that a busy client costs one
look-up a second and a revoked key stops within one. Unknown keys are not kept: a key works at once when it
was made, and guessing fills no memory.

What can go wrong: when an answer grows old, a hundred requests ask at once. They share one look-up.
"""

from __future__ import annotations

import asyncio
from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler

from pgmail.clock import Clock, SystemClock
from pgmail.domain.keys import hash_key, is_key
from pgmail.errors import Refused
from pgmail.store import keys
from pgmail.store.database import Database
from pgmail.store.keys import Caller

TTL_SECONDS = 1.0
MAX_KEPT = 10_000


class Keyring:
    """The keys that were valid a moment ago."""

    def __init__(self, database: Database, clock: Clock | None = None) -> None:
        self._database = database
        self._clock = clock or SystemClock()
        self._kept: dict[bytes, tuple[float, Caller]] = {}
        self._asked: dict[bytes, asyncio.Task[Caller | None]] = {}

    async def caller(self, header: str | None) -> Caller:
        """Return whose `Authorization` header this is.

        Raises Refused (401): `missing_api_key`, `invalid_api_key`; and DatabaseAway.
        """
        scheme, _, key = (header or "").partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key:
            raise Refused("missing_api_key", "", "send the header 'Authorization: Bearer pgm_live_...'", 401)
        found = await self._find(hash_key(key)) if is_key(key) else None
        if found is None:
            raise Refused("invalid_api_key", "", "this API key is unknown or was revoked", 401)
        return found

    async def _find(self, hash: bytes) -> Caller | None:
        until, found = self._kept.get(hash, (0.0, None))
        if found is not None and self._clock.monotonic() < until:
            return found
        task = self._asked.get(hash)
        if task is None:
            task = self._asked[hash] = asyncio.create_task(self._ask(hash))
            task.add_done_callback(lambda done: self._answered(hash, done))
        # A client that hangs up must not take the answer away from the others who wait for it.
        return await asyncio.shield(task)

    def _answered(self, hash: bytes, task: asyncio.Task[Caller | None]) -> None:
        self._asked.pop(hash, None)
        if not task.cancelled():
            task.exception()  # seen, even if everyone who asked has hung up

    async def _ask(self, hash: bytes) -> Caller | None:
        asked = self._clock.monotonic()  # the answer may be older than its arrival, not younger
        self._kept.pop(hash, None)
        found = await keys.check(self._database, hash)
        if found is not None:
            if len(self._kept) >= MAX_KEPT:
                self._kept.clear()
            self._kept[hash] = (asked + TTL_SECONDS, found)
        return found


async def guard(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    """Let a request with a valid key pass, and say in `request.auth` whose it is (a Litestar guard)."""
    keyring: Keyring = connection.app.state.keyring
    caller = await keyring.caller(connection.headers.get("authorization"))
    client = connection.client
    connection.scope["auth"] = caller._replace(source=client.host if client else "")
