"""Templates in the database, to look at: versions, drafts and what is published.

Acts as the tenant of the connection. Saving and publishing, which compile first, are `pgmail.publish`'s.
"""

from __future__ import annotations

from typing import Any

from psycopg import AsyncConnection

from pgmail.sqlfiles import queries
from pgmail.store.database import fetch_many, fetch_one

Connection = AsyncConnection[Any]


async def listing(connection: Connection, *, limit: int = 100, after: str | None = None) -> list[Any]:
    """Return templates by name: `name newest_version published_version created_at updated_at`.

    `published_version` is None while there are only drafts; `after` is the last name already seen.
    """
    return await fetch_many(connection, queries("templates")["list"], {"limit": limit, "after": after})


async def get(connection: Connection, name: str, version: int | None = None) -> Any | None:
    """Return one version in full, or None.

    Without `version`: the published one that mail gets, or the newest draft. `name version state subject
    body_text body_html required depends created_at created_by published_at`.
    """
    return await fetch_one(connection, queries("templates")["get"], {"name": name, "version": version})


async def versions(connection: Connection, name: str) -> list[Any]:
    """Return all versions of a template, newest first, without their sources."""
    return await fetch_many(connection, queries("templates")["versions"], {"name": name})
