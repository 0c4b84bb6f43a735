"""How long settled mail is kept, as people see and set it. The leader drops what is past it (`maintain.retention`)."""

from __future__ import annotations

from typing import Any

from psycopg import AsyncConnection

from pgmail.sqlfiles import queries
from pgmail.store.database import fetch_one

Connection = AsyncConnection[Any]


async def show(connection: Connection) -> Any:
    """Return `content_days record_days changed_at changed_by oldest_content oldest_record overdue kept`.

    Days are None for ever. `overdue` partitions should have gone a day ago; `kept` rows are past their time and
    stand apart since their mail is not settled.
    """
    return await fetch_one(connection, queries("retention")["show"])


async def change(
    connection: Connection, content_days: int | None, record_days: int | None, *, reason: str | None = None
) -> None:
    """Set both. Raises Refused `invalid_retention`: below a day, or content kept for longer than the record."""
    await fetch_one(
        connection,
        queries("retention")["set"],
        {"content_days": content_days, "record_days": record_days, "reason": reason},
    )
