"""Suppressions in the database: who gets no mail, and why. Acts as the tenant of the connection.

An entry is (address, stream); stream '' is every stream. Addresses are normalised as recipients are: lower
case, domain in A-labels.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from psycopg import AsyncConnection

from pgmail.sqlfiles import queries
from pgmail.store.database import fetch_many, fetch_one

Connection = AsyncConnection[Any]
REASONS = ("bounced", "complained", "unsubscribed", "manual")


async def add(
    connection: Connection,
    address: str,
    *,
    reason: str = "manual",
    source: str | None = None,
    stream: str = "",
    expires_at: datetime | None = None,
) -> str:
    """Suppress an address and return its normal form; an entry that is there is replaced.

    Raises Refused: `invalid_address`, `invalid_reason`.
    """
    row: Any = await fetch_one(
        connection,
        queries("suppressions")["add"],
        {"address": address, "reason": reason, "source": source, "stream": stream, "expires_at": expires_at},
    )
    return str(row.address)


async def remove(
    connection: Connection, address: str, *, stream: str = "", reason: str | None = None
) -> bool:
    """Let an address have mail again; False if it was not suppressed on this stream."""
    row: Any = await fetch_one(
        connection,
        queries("suppressions")["remove"],
        {"address": address, "stream": stream, "reason": reason},
    )
    return bool(row.removed)


async def listing(
    connection: Connection,
    *,
    limit: int = 100,
    after: tuple[str, str] | None = None,
    address: str | None = None,
    stream: str | None = None,
    reason: str | None = None,
) -> list[Any]:
    """Return entries by address and stream: `address stream reason source created_at created_by expires_at`.

    `after` is the last (address, stream) already seen; the others narrow the list to what equals them.
    """
    after_address, after_stream = after or (None, None)
    return await fetch_many(
        connection,
        queries("suppressions")["list"],
        {
            "limit": limit,
            "after_address": after_address,
            "after_stream": after_stream,
            "address": address,
            "stream": stream,
            "reason": reason,
        },
    )
