"""Bearer keys (RFC 6750): whose request it is, and whether that key may ask for it.

A key's hash is looked up in the database and the answer kept for a second, or until the key expires, so that a
busy client costs a look-up a second and a revoked key stops within one. A request that comes shortly before the end
of that second has the next look-up begin and does not wait for it. Unknown keys are not kept: a key works at once when
it was made, and guessing fills no memory.

The dashboard asks by a key's id, which its signed session names; such an answer is kept as long.

What can go wrong: an answer has grown old, and a hundred requests ask at once. They share one look-up. Somebody
tries keys that are none: see `guesses`. Who is slowed there is asked about last, unless its key was valid before.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NoReturn
from uuid import UUID

from pgmail.access.guesses import Guesses, Lane
from pgmail.access.keynotes import KeyNotes
from pgmail.access.origin import group, inside, read
from pgmail.clock import Clock, SystemClock
from pgmail.domain.keys import hash_key, is_key
from pgmail.errors import Refused
from pgmail.singleflight import SingleFlight
from pgmail.store import keys
from pgmail.store.database import Database
from pgmail.store.keys import Caller, Valid

TTL_SECONDS = 1.0
EARLY_SECONDS = 0.3  # of these, the last ones, in which a request has the question asked anew
MAX_KEPT = 10_000
_NOWHERE = -1.0  # a moment before all of a monotonic clock


class Keyring:
    """The keys that were valid a moment ago. Of others, those that were once valid are still told from guesses."""

    def __init__(self, database: Database, clock: Clock | None = None) -> None:
        self._database = database
        self._clock = clock or SystemClock()
        self._kept: dict[bytes, tuple[float, Caller]] = {}
        self._sessions: dict[tuple[int, UUID], tuple[float, Caller]] = {}
        self._asked = SingleFlight[bytes, Caller | None]()
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
        left = until - self._clock.monotonic()
        looked = found is None or left <= EARLY_SECONDS
        if found is None or left <= 0:
            found = await self._look_up(hashed, address, known=found is not None)
        elif looked:
            self._asked.begin(hashed, partial(self._ask, hashed))
        if found.networks is not None:
            self._need_network(found, address)
        # Once it is let in: a use that was refused is none, and would name a thief's address as the last one. With
        # networks each time, for the look-up may have been a thief's.
        if looked or found.networks is not None:
            self.notes.used(found, address)
        return found

    async def session(self, tenant_id: int, id: UUID, address: str | None = None) -> Caller:
        """Return the caller of a session that was begun with a tenant's key and is used from an address.

        Raises Refused: `signed_out` (401) once the key has ended, `network_not_allowed` (403); and DatabaseAway.
        """
        until, found = self._sessions.get((tenant_id, id), (_NOWHERE, None))
        looked = found is None or self._clock.monotonic() >= until
        if found is None or looked:
            asked = self._clock.monotonic()
            valid = await keys.check_id(self._database, tenant_id, id)
            self._sessions.pop((tenant_id, id), None)
            if valid is None:
                raise Refused("signed_out", "", "the API key of this session was revoked or has expired", 401)
            if len(self._sessions) >= MAX_KEPT:
                self._sessions.clear()
            self._sessions[tenant_id, id] = (asked + _ttl(valid), found := valid.caller)
        if found.networks is not None:
            self._need_network(found, address)
        if looked:
            self.notes.used(found, address)
        return found

    async def _look_up(self, hash: bytes, address: str | None, *, known: bool) -> Caller:
        wait = 0.0 if known else self._guesses.wait(group(address))
        if not wait:
            found = await self._asked.ask(hash, partial(self._ask, hash))
        else:
            async with self._lane.turn(wait):
                found = await self._asked.ask(hash, partial(self._ask, hash))
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

    async def _ask(self, hash: bytes) -> Caller | None:
        asked = self._clock.monotonic()  # the answer may be older than its arrival, not younger
        found = await keys.check(self._database, hash)
        self._kept.pop(hash, None)
        if found is None:
            return None
        if len(self._kept) >= MAX_KEPT:
            self._kept.clear()
        self._kept[hash] = (asked + _ttl(found), found.caller)
        return found.caller


def _ttl(found: Valid) -> float:
    """How long an answer is believed, in seconds."""
    return TTL_SECONDS if found.seconds_left is None else min(TTL_SECONDS, found.seconds_left)


def need_scope(caller: Caller, scope: Any) -> None:
    """Refuse (403 `missing_scope`) a caller that has none of a route's scopes: a name, or several in a tuple."""
    wanted = (scope,) if isinstance(scope, str) else tuple(scope or ())
    if not any(one in caller.scopes for one in wanted):
        words = " or ".join(wanted) or "that nobody has"
        raise Refused("missing_scope", "", f"this takes an API key with the scope {words}", 403)
