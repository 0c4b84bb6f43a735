"""Streams in the database: how mail of one kind is sent, retried and limited. As the connection's tenant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psycopg import AsyncConnection
from psycopg.types.json import Jsonb

from pgmail.errors import Refused
from pgmail.sqlfiles import queries
from pgmail.store.database import fetch_many, fetch_one

Connection = AsyncConnection[Any]
PRIORITIES: Mapping[str, int] = {"high": 1, "normal": 2, "low": 3}


async def listing(connection: Connection) -> list[Any]:
    """Return all streams by name.

    `name priority relay on_doubt trace retry_base_seconds retry_factor retry_cap_seconds retry_jitter
    max_attempts max_age_seconds max_queued keep_content_days suppress_bounced seal created_at`; `priority` is a word,
    `max_queued` None is no limit, `keep_content_days` None is what the fleet's retention says.
    `relay` is a name, several in their order, or several as objects of `name` and `weight`.
    """
    return await fetch_many(connection, queries("streams")["list"], {"name": None})


async def get(connection: Connection, name: str) -> Any | None:
    """Return one stream, or None."""
    return await fetch_one(connection, queries("streams")["list"], {"name": name})


async def save(connection: Connection, name: str, settings: Mapping[str, Any]) -> None:
    """Create a stream, or change what `settings` names of one; keys as in `listing`, `priority` a word.

    Raises Refused: `invalid_name`, `unknown_key`, `invalid_priority`, `invalid_relay`, `unknown_relay`,
    `invalid_stream`.
    """
    await fetch_one(
        connection, queries("streams")["save"], {"name": name, "settings": Jsonb(stored(settings))}
    )


def stored(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as the table has them: the word of a priority becomes its number."""
    if "priority" not in settings:
        return dict(settings)
    word = settings["priority"]
    if word not in PRIORITIES:
        raise Refused("invalid_priority", "/priority", "high, normal or low")
    return {**settings, "priority": PRIORITIES[word]}
