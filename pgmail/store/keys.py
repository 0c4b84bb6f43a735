"""API keys in the database: the check that comes before anything else, and their making and revoking.

`create`, `revoke` and `listing` act as the tenant of the connection; `check` is the one question that the
API's role may ask before it acts for anybody.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from uuid import UUID

from psycopg import AsyncConnection

from pgmail.domain.keys import make_key
from pgmail.sqlfiles import queries
from pgmail.store.database import Database, fetch_many, fetch_one

Connection = AsyncConnection[Any]


class Caller(NamedTuple):
    """Whose key it was: the tenant it speaks for, and the key's id and name."""

    tenant_id: int
    key_id: UUID
    name: str
    source: str = ""  # the client's address, for the audit; unknown where many send together

    @property
    def actor(self) -> str:
        """Who did it, in the words of the record and of `audit`."""
        return f"key {self.name}"

    def settings(self) -> dict[str, str]:
        """Return the parameters of the query `act_as`."""
        return {"tenant_id": str(self.tenant_id), "actor": self.actor, "source": self.source}


class Made(NamedTuple):
    """A key that was just made. `key` is shown once and stored nowhere."""

    id: UUID
    key: str
    hint: str


async def check(database: Database, hash: bytes) -> Caller | None:
    """Return whose key has this SHA-256, or None for an unknown or revoked one."""
    row = await database.one(queries("keys")["check"], {"hash": hash})
    return None if row is None else Caller(row.tenant_id, row.key_id, row.name)


async def create(connection: Connection, name: str) -> Made:
    """Make a key for the connection's tenant. `name` says who uses it."""
    key, hint, hash_ = make_key()
    row: Any = await fetch_one(
        connection, queries("keys")["create"], {"name": name, "hint": hint, "hash": hash_}
    )
    return Made(row.id, key, hint)


async def revoke(connection: Connection, id: UUID, reason: str | None = None) -> bool:
    """Revoke a key; False if it is unknown or was revoked before. Processes notice within a second."""
    row: Any = await fetch_one(connection, queries("keys")["revoke"], {"id": id, "reason": reason})
    return bool(row.revoked)


async def listing(connection: Connection) -> list[Any]:
    """Return all keys, oldest first: `id name hint created_at created_by revoked_at`."""
    return await fetch_many(connection, queries("keys")["list"])
