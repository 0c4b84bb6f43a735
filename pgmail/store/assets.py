"""Assets in the database: files that are stored once and attached by name. As the connection's tenant."""

from __future__ import annotations

from typing import Any

from psycopg import AsyncConnection

from pgmail.sqlfiles import queries
from pgmail.store.database import fetch_many, fetch_one

Connection = AsyncConnection[Any]


async def save(connection: Connection, name: str, filename: str, content_type: str, body: bytes) -> None:
    """Store a file under a name, or another in its place.

    Mail that waits gets the file that stands there when it is sent. Raises Refused: `invalid_name`,
    `invalid_attachment`, `too_large` (413).
    """
    await fetch_one(
        connection,
        queries("assets")["save"],
        {"name": name, "filename": filename, "content_type": content_type, "body": body},
    )


async def listing(connection: Connection, *, limit: int = 100, after: str | None = None) -> list[Any]:
    """Return assets by name: `name filename content_type size_bytes created_at created_by`."""
    return await fetch_many(connection, queries("assets")["list"], {"limit": limit, "after": after})


async def get(connection: Connection, name: str) -> Any | None:
    """Return what is known of one asset (without its octets), or None."""
    return await fetch_one(connection, queries("assets")["get"], {"name": name})
