"""Templates in the database: versions, drafts and what is published. Acts as the tenant of the connection.

`required` and `depends` come from whoever compiled the source (`pgmail.render.templates`); the database
believes them, and checks emails against `required`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from psycopg import AsyncConnection
from psycopg.types.json import Jsonb

from pgmail.sqlfiles import queries
from pgmail.store.database import fetch_many, fetch_one

Connection = AsyncConnection[Any]


async def save(
    connection: Connection,
    name: str,
    *,
    subject: str | None,
    text: str | None,
    html: str | None,
    required: Iterable[str],
    depends: Mapping[str, int],
    publish: bool,
) -> int:
    """Save a new version and return its number.

    `depends` names the versions of layouts and includes that it was compiled with. Raises Refused:
    `invalid_name`, `missing_field`.
    """
    row: Any = await fetch_one(
        connection,
        queries("templates")["save"],
        {
            "name": name,
            "subject": subject,
            "text": text,
            "html": html,
            "required": sorted(required),
            "depends": Jsonb(dict(depends)),
            "publish": publish,
        },
    )
    return int(row.version)


async def publish(
    connection: Connection, name: str, version: int, *, required: Iterable[str], depends: Mapping[str, int]
) -> None:
    """Publish a version that is stored. Raises Refused `unknown_template` (404)."""
    await fetch_one(
        connection,
        queries("templates")["publish"],
        {"name": name, "version": version, "required": sorted(required), "depends": Jsonb(dict(depends))},
    )


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


async def published(connection: Connection, names: Iterable[str]) -> dict[str, Any]:
    """Return the published versions of these names; what is not published is missing."""
    rows = await fetch_many(connection, queries("templates")["published"], {"names": sorted(names)})
    return {row.name: row for row in rows}
