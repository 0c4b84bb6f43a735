"""The audit: who did what, when, from where and why. Read here; written by the functions that act.

What can go wrong: what an act says was done is what was asked for, such as a filter; which mail it reached
stands in the events of that mail.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from psycopg import AsyncConnection

from pgmail.sqlfiles import queries
from pgmail.store.database import fetch_many

Connection = AsyncConnection[Any]


async def listing(
    connection: Connection,
    *,
    limit: int,
    own: bool,
    before: int | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    actor: str | None = None,
    action: str | None = None,
    object: str | None = None,
) -> list[Any]:
    """Return acts, newest first: `id at tenant actor action object reason source application`.

    `own` leaves out those of other tenants and of the fleet. `action` and `object` may end in `*`.
    """
    values = {
        "limit": limit, "own": own, "before": before, "since": since, "until": until,
        "actor": actor, "action": action, "object": object,
    }  # fmt: skip
    return await fetch_many(connection, queries("audit")["list"], values)
