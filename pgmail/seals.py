"""Data keys in a process: opened once, kept in memory, asked of the database as they are met.

`Opener` is the workers': it opens what was claimed, by the numbers of keys that rows name. `Sealer` is the API's:
it knows which streams of a tenant are sealed, and is a second behind at most.

What can go wrong: a key-encryption key is not in this process (`KeyMissing`). That is never the mail's fault: a
worker delays it, the API refuses with 503, and all is well once the key is there. A stream that is sealed since
less than a second takes the mail unsealed from here where it may be, and refuses it where it must not; whoever is
refused then asks once more (`forget`). When an answer grows old, all requests of that moment share one look-up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from functools import partial

from pgmail.errors import KeyMissing, Refused
from pgmail.sealing.box import new_key
from pgmail.sealing.keks import Keks
from pgmail.sealing.tenant import TenantSeal
from pgmail.singleflight import SingleFlight
from pgmail.store import sealing as store
from pgmail.store.database import Database
from pgmail.store.keys import Caller
from pgmail.store.tenant import acting_as

TTL_SECONDS = 1.0
KEPT_TENANTS = 10_000


class Opener:
    """Opens data keys for a worker, and keeps those that it opened."""

    def __init__(self, database: Database, keks: Keks) -> None:
        self._database = database
        self._keks = keks
        self._open: dict[tuple[int, int], bytes] = {}

    async def keys(self, tenant: int, ids: Collection[int]) -> dict[int, bytes | KeyMissing]:
        """Return these data keys; for one that cannot be had, why. Raises DatabaseAway."""
        missing = [number for number in ids if (tenant, number) not in self._open]
        found: dict[int, bytes | KeyMissing] = {}
        if missing:
            for row in await store.keys(self._database, tenant, missing):
                try:
                    self._open[tenant, row.id] = self._keks.unwrap(tenant, row.kek, row.wrapped)
                except KeyMissing as why:
                    found[row.id] = KeyMissing(f"sealed with data key {row.id}, and {why}")
        for number in ids:
            key = self._open.get((tenant, number))
            if key is not None:
                found[number] = key
            elif number not in found:
                found[number] = KeyMissing(f"sealed with data key {number}, which the database has no more")
        return found


class Sealer:
    """Knows for each tenant what to seal with. For one event loop."""

    def __init__(self, database: Database, keks: Keks, clock: Callable[[], float] = time.monotonic) -> None:
        """`database` is of a role that carries tenants."""
        self._database = database
        self._keks = keks
        self._clock = clock
        self._kept: dict[int, tuple[float, TenantSeal]] = {}
        self._asked = SingleFlight[int, TenantSeal]()

    async def of(self, caller: Caller) -> TenantSeal | None:
        """Return what a caller's tenant seals with; None if this process has no keys. Raises DatabaseAway."""
        if not self._keks:
            return None
        until, found = self._kept.get(caller.tenant_id, (0.0, None))
        if found is not None and self._clock() < until:
            return found
        return await self._asked.ask(caller.tenant_id, partial(self._ask, caller))

    def forget(self, caller: Caller) -> bool:
        """Ask anew next time; False if it would come to the same, for want of keys."""
        self._kept.pop(caller.tenant_id, None)
        self._asked.forget(caller.tenant_id)  # that may have been asked before the change
        return bool(self._keks)

    async def _ask(self, caller: Caller) -> TenantSeal:
        asked = self._clock()
        found = await self._look(caller)
        if len(self._kept) >= KEPT_TENANTS:
            self._kept.clear()
        self._kept[caller.tenant_id] = (asked + TTL_SECONDS, found)
        return found

    async def _look(self, caller: Caller) -> TenantSeal:
        async with acting_as(self._database, caller) as connection:
            local = datetime.now(UTC)
            state = await store.state(connection)
            if state.streams and not state.keys:
                kek, wrapped = self._keks.wrap(caller.tenant_id, new_key())
                await store.first(connection, kek, wrapped)
                state = await store.state(connection)
        return TenantSeal(state, self._keks, local)


async def newest_key(connection: store.Connection, keks: Keks) -> tuple[int, int, bytes]:
    """Return what the connection's tenant seals small secrets with: its id, the data key's number, and the key.

    Makes the tenant's first data key where there is none. Raises Refused `sealing_unavailable` (503).
    """
    if not keks:
        because = (
            "this secret is always sealed, and there is no key to seal it with: `pgmail seal key NAME` makes one, "
            "for PGMAIL_SEAL_KEYS of all processes"
        )
        raise Refused("sealing_unavailable", "", because, 503)
    state = await store.state(connection)
    try:
        if not state.keys:
            kek, wrapped = keks.wrap(state.tenant, new_key())
            await store.first(connection, kek, wrapped)
            state = await store.state(connection)
        newest = max(state.keys, key=lambda key: key.id)
        return state.tenant, newest.id, keks.unwrap(state.tenant, newest.kek, newest.wrapped)
    except KeyMissing as why:
        raise Refused("sealing_unavailable", "", str(why), 503) from None


__all__ = ["Opener", "Sealer", "TenantSeal", "newest_key"]
