"""Templates as saving and publishing need them: sources by name, and the two functions that store a version.

Each function runs on a lent connection, in whatever transaction it is in, as the tenant of that session.

What can go wrong: between reading a layout and storing what leans on it, somebody publishes a newer layout.
That is fine: the version that was checked is the one that is pinned.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from psycopg import AsyncConnection
from psycopg.types.json import Jsonb

from pgmail import sqlfiles
from pgmail.store.database import fetch_many, fetch_one

_Q = sqlfiles.queries("publish")

Lent = AsyncConnection[Any]
"""A connection that the caller opened and closes."""


class Version(msgspec.Struct, frozen=True):
    """One version of a template as it is stored."""

    name: str
    version: int
    subject: str | None
    text: str | None
    html: str | None


async def published(connection: Lent, names: Iterable[str]) -> dict[str, Version]:
    """Return the newest published version of each template named; those that have none are left out."""
    rows = await fetch_many(connection, _Q["published_sources"], {"names": sorted(names)})
    return {row.name: _version(row) for row in rows}


async def stored(connection: Lent, name: str, version: int) -> Version | None:
    """Return one version, published or not."""
    row = await fetch_one(connection, _Q["source_of_version"], {"name": name, "version": version})
    return None if row is None else _version(row)


async def newest(connection: Lent, name: str) -> int | None:
    """Return the number of the newest version, published or not."""
    row = await fetch_one(connection, _Q["newest_version"], {"name": name})
    return None if row is None else row.version


async def save(
    connection: Lent,
    name: str,
    *,
    subject: str | None,
    text: str | None,
    html: str | None,
    required: Iterable[str],
    depends: Mapping[str, int],
    publish: bool,
) -> int:
    """Store a new version; its number."""
    values = {
        "name": name,
        "subject": subject,
        "text": text,
        "html": html,
        "required": sorted(required),
        "depends": Jsonb(dict(depends)),
        "publish": publish,
    }
    rows = await fetch_many(connection, _Q["save_template"], values)
    return int(rows[0].version)


async def publish(
    connection: Lent, name: str, version: int, *, required: Iterable[str], depends: Mapping[str, int]
) -> None:
    """Publish a stored version, pinned to what it leans on.

    Raises Refused (`unknown_template`, 404) if there is no such version.
    """
    values = {"name": name, "version": version, "required": sorted(required), "depends": Jsonb(dict(depends))}
    await fetch_one(connection, _Q["publish_template"], values)


def _version(row: Any) -> Version:
    return Version(row.name, row.version, row.subject, row.body_text, row.body_html)
