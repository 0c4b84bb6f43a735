"""Bearer keys (RFC 6750): whose request it is, and whether that key may ask for it.

A key's hash is looked up in the database and the answer kept for a second, or until the key expires, so that a
busy client costs one look-up a second and a revoked key stops within one. Unknown keys are not kept: a key works
at once when it was made, and guessing fills no memory.

Each route says in its `scope` which scopes let a key ask for it; one that says nothing lets nobody in. A key for tests
is let in where something is only shown, and else where a route says `test=True`: what it changes is within `reach`.

What can go wrong: when an answer grows old, a hundred requests ask at once. They share one look-up. Somebody
tries keys that are none: see `guesses`. Who is slowed there is asked about last, unless its key was valid before.
"""

from __future__ import annotations

import asyncio
from typing import Any, NoReturn

from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler

from pgmail.api.guesses import Guesses, Lane
from pgmail.api.keynotes import KeyNotes
from pgmail.api.origin import group, inside, read
from pgmail.api.reach import need_live
from pgmail.clock import Clock, SystemClock
from pgmail.domain.keys import hash_key, is_key
from pgmail.errors import Refused
from pgmail.store import keys
from pgmail.store.database import Database
from pgmail.store.keys import Caller

TTL_SECONDS = 1.0
MAX_KEPT = 10_000
_NOWHERE = -1.0  # a moment before all of a monotonic clock


class Keyring:
    """The keys that were valid a moment ago. Of others, those that were once valid are still told from guesses."""

    def __init__(self, database: Database, clock: Clock | None = None) -> None:
        self._database = database
        self._clock = clock or SystemClock()
        self._kept: dict[bytes, tuple[float, Caller]] = {}
        self._asked: dict[bytes, asyncio.Task[Caller | None]] = {}
        self._guesses = Guesses(self._clock)
        self._lane = Lane(self._clock)
        self.notes = KeyNotes(database, self._guesses, self._clock)

    async def caller(self, header: str | None, address: str | None = None) -> Caller:
        """Return whose `Authorization` header this is, sent from an address.

        Raises Refused: `missing_api_key`, `invalid_api_key` (401), `network_not_allowed` (403), `too_many_tries`
        (429); and DatabaseAway.
        """
        scheme, _, key = (header or "").partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key:
            raise Refused("missing_api_key", "", "send the header 'Authorization: Bearer pgm_live_...'", 401)
        if not is_key(key):
            self._fail(address)
        hashed = hash_key(key)
        until, found = self._kept.get(hashed, (_NOWHERE, None))
        looked = found is None or self._clock.monotonic() >= until
        if found is None or looked:
            found = await self._look_up(hashed, address, known=found is not None)
        if found.networks is not None:
            self._need_network(found, address)
        # Once it is let in: a use that was refused is none, and would name a thief's address as the last one. With
        # networks each time, for the look-up may have been a thief's.
        if looked or found.networks is not None:
            self.notes.used(found, address)
        return found

    async def _look_up(self, hash: bytes, address: str | None, *, known: bool) -> Caller:
        wait = 0.0 if known else self._guesses.wait(group(address))
        if not wait:
            found = await self._find(hash)
        else:
            async with self._lane.turn(wait):
                found = await self._find(hash)
                if found is None:
                    await self._lane.pause()
        if found is None:
            self._fail(address)
        return found

    def _fail(self, address: str | None) -> NoReturn:
        """Refuse a key that is none: 401, or 429 where that came too often."""
        self._guesses.failed(group(address))
        because = "this API key is unknown, was revoked or has expired"
        raise Refused("invalid_api_key", "", because, 401)

    def _need_network(self, caller: Caller, address: str | None) -> None:
        here = read(address)
        if here is None or not inside(here, caller.networks or ()):
            self._guesses.failed(group(address))
            raise Refused("network_not_allowed", "", "this API key may not be used from this address", 403)

    async def _find(self, hash: bytes) -> Caller | None:
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
        found = await keys.check(self._database, hash)
        self._kept.pop(hash, None)
        if found is None:
            return None
        left = TTL_SECONDS if found.seconds_left is None else min(TTL_SECONDS, found.seconds_left)
        if len(self._kept) >= MAX_KEPT:
            self._kept.clear()
        self._kept[hash] = (asked + left, found.caller)
        return found.caller


def need_scope(caller: Caller, scope: Any) -> None:
    """Refuse (403 `missing_scope`) a caller that has none of a route's scopes: a name, or several in a tuple."""
    wanted = (scope,) if isinstance(scope, str) else tuple(scope or ())
    if not any(one in caller.scopes for one in wanted):
        words = " or ".join(wanted) or "that nobody has"
        raise Refused("missing_scope", "", f"this takes an API key with the scope {words}", 403)


async def guard(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """Let a request with a valid key and the right scope pass, and say in `request.auth` whose it is.

    A Litestar guard; it leaves the client's address in `request.state.address`.
    """
    state = connection.app.state
    address = connection.state.address = state.origins.of(connection.scope)
    caller = await state.keyring.caller(connection.headers.get("authorization"), address)
    if connection.scope.get("method") != "OPTIONS":  # which the framework answers: it names a route's methods
        need_scope(caller, handler.opt.get("scope"))
        if not handler.opt.get("test", connection.scope.get("method") == "GET"):
            need_live(caller)
    connection.scope["auth"] = caller._replace(source=address or "")
