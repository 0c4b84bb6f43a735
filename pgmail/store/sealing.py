"""Data keys in the database: stored wrapped, read by who seals and opens mail, wrapped anew by an operator.

`state` and `first` act as the tenant of the connection; `keys` is the workers', `listing`, `streams`, `add` and
`rewrap` an administrator's.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from psycopg import AsyncConnection

from pgmail.domain.seal import State, Wrapped, wrapped_of
from pgmail.sqlfiles import queries
from pgmail.store.database import Database, fetch_many, fetch_one

Connection = AsyncConnection[Any]


async def state(connection: Connection) -> State:
    """Return what the connection's tenant seals, and with what."""
    row: Any = await fetch_one(connection, queries("sealing")["state"])
    return State(row.tenant, row.now, row.streams, wrapped_of(row.keys))


async def first(connection: Connection, kek: str, wrapped: bytes) -> int:
    """Store the first data key of the connection's tenant, unless it has one; the newest one's number."""
    row: Any = await fetch_one(connection, queries("sealing")["first"], {"kek": kek, "wrapped": wrapped})
    return int(row.id)


async def keys(database: Database, tenant: int, ids: Collection[int]) -> list[Wrapped]:
    """Return these data keys of a tenant, as far as there are."""
    rows = await database.many(queries("sealing")["keys"], {"tenant": tenant, "ids": list(ids)})
    return [Wrapped(row.id, row.kek, bytes(row.wrapped)) for row in rows]


async def listing(connection: Connection) -> list[Any]:
    """Return all data keys: `tenant_id tenant id kek wrapped created_at created_by wrapped_at current`."""
    return await fetch_many(connection, queries("sealing")["list"])


async def streams(connection: Connection) -> list[Any]:
    """Return the streams of all tenants that are sealed: `tenant name seal`."""
    return await fetch_many(connection, queries("sealing")["streams"])


async def add(connection: Connection, tenant: str, kek: str, wrapped: bytes, reason: str | None) -> int:
    """Give a tenant a new data key, for its new mail; its number. Refused `unknown_tenant` (404)."""
    values = {"tenant": tenant, "kek": kek, "wrapped": wrapped, "reason": reason}
    row: Any = await fetch_one(connection, queries("sealing")["add"], values)
    return int(row.id)


async def rewrap(
    connection: Connection, tenant: int, was: Wrapped, kek: str, wrapped: bytes, *, reason: str | None
) -> bool:
    """Store the same data key wrapped anew. False if somebody else did so meanwhile."""
    values = {
        "tenant": tenant,
        "id": was.id,
        "was": was.wrapped,
        "wrapped": wrapped,
        "kek": kek,
        "reason": reason,
    }
    row: Any = await fetch_one(connection, queries("sealing")["rewrap"], values)
    return bool(row.done)


__all__ = ["State", "Wrapped", "add", "first", "keys", "listing", "rewrap", "state", "streams"]
