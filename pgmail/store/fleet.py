"""The fleet as people see it: its processes and its relays. They belong to no tenant.

What can go wrong: a process that ended without a word stands here until it is rescued; the age of its last beat
tells.
"""

from __future__ import annotations

from typing import Any

from psycopg import AsyncConnection

from pgmail.sqlfiles import queries
from pgmail.store.database import fetch_many

Connection = AsyncConnection[Any]


async def processes(connection: Connection) -> list[Any]:
    """Return every process that beats, by program.

    `epoch program state asleep concurrency started_at beat_seconds leads staging host pid`.
    `beat_seconds` is the age of the last beat. `host` and `pid` are None where several tenants share the fleet.
    """
    return await fetch_many(connection, queries("fleet")["processes"])


async def relays(connection: Connection) -> list[Any]:
    """Return each relay by name: `name state reason blocked_until changed_at changed_by up_since`."""
    return await fetch_many(connection, queries("fleet")["relays"])
