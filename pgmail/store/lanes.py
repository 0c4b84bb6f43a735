"""Lanes, pauses and limits as people see and change them. Acts as the tenant of the connection.

A pause belongs to a tenant, or to the whole fleet, which only an administrator may pause. Limits are the
fleet's. What can go wrong: two operators change one limit at the same moment; the later one wins, and both
stand in `audit`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection

from pgmail.sqlfiles import queries
from pgmail.store.database import fetch_many, fetch_one
from pgmail.store.streams import PRIORITIES

Connection = AsyncConnection[Any]

_LIMIT = ("messages", "per_seconds", "connections", "ramp_seconds", "note")
_NEW_LIMIT: Mapping[str, object] = {
    "messages": None,
    "per_seconds": 1.0,
    "connections": None,
    "ramp_seconds": 30.0,
    "note": None,
}


async def limits(connection: Connection, scope: str | None = None, name: str | None = None) -> list[Any]:
    """Return the limits that the caller may see: relays', tenants' (a tenant sees its own), sites'.

    `scope name messages per_seconds connections ramp_seconds note shipped changed_at changed_by`. `messages` in
    `per_seconds` and `connections` are None where there is no such limit; `ramp_seconds` is a relay's alone.
    """
    return await fetch_many(connection, queries("limits")["list"], {"scope": scope, "name": name})


async def set_limit(connection: Connection, scope: str, name: str, changes: Mapping[str, object]) -> str:
    """Make a limit, or change what is named of one; its name in normal form (a site's is its group's).

    `changes` are of `messages per_seconds connections ramp_seconds note`. Raises Refused: `invalid_scope`,
    `invalid_site`, `invalid_name`, `unknown_tenant` (404), `missing_field`, `invalid_limit`.
    """
    ask = queries("limits")
    normal: Any = await fetch_one(connection, ask["limit_name"], {"scope": scope, "name": name})
    (row,) = await limits(connection, scope, normal.name) or [None]
    now = {} if row is None else {key: getattr(row, key) for key in _LIMIT}
    values = {**_NEW_LIMIT, **{key: value for key, value in now.items() if value is not None}, **changes}
    made: Any = await fetch_one(connection, ask["set_limit"], {"scope": scope, "name": name, **values})
    return str(made.name)


async def remove_limit(connection: Connection, scope: str, name: str) -> bool:
    """Remove a limit, one of the defaults too; False if there was none. Raises Refused as `set_limit`."""
    row: Any = await fetch_one(connection, queries("limits")["remove_limit"], {"scope": scope, "name": name})
    return bool(row.removed)


async def set_weight(connection: Connection, tenant: str, weight: float) -> None:
    """Change a tenant's share beside others. Raises Refused: `invalid_weight`, `unknown_tenant` (404)."""
    await fetch_one(connection, queries("limits")["set_tenant"], {"name": tenant, "weight": weight})


async def paused(connection: Connection, scope: str | None = None, name: str | None = None) -> list[Any]:
    """Return the pauses that hold for the tenant, oldest first: `scope name fleet reason until paused_at paused_by`.

    With a scope and name: the tenant's own of that name.
    """
    return await fetch_many(connection, queries("limits")["paused"], {"scope": scope, "name": name})


async def pause(
    connection: Connection,
    scope: str,
    name: str,
    *,
    reason: str | None,
    until: datetime | None = None,
    fleet: bool = False,
) -> str:
    """Stop mail to a `site`, of a `stream` or of a `lane` (stream/priority/site); the name in normal form.

    Raises Refused: `missing_field`, `invalid_scope`, `invalid_site`, `invalid_lane`, `unknown_stream`,
    `invalid_reason`, `time_in_past`, and `not_allowed` (403) for an API key that would pause the fleet.
    """
    values = {"scope": scope, "name": name, "reason": reason, "until": until, "fleet": fleet}
    row: Any = await fetch_one(connection, queries("limits")["pause_mail"], values)
    return str(row.name)


async def resume(
    connection: Connection, scope: str, name: str, *, reason: str | None = None, fleet: bool = False
) -> str:
    """Let mail flow again; the name in normal form. Raises Refused as `pause` does, and `not_paused` (404)."""
    values = {"scope": scope, "name": name, "reason": reason, "fleet": fleet}
    row: Any = await fetch_one(connection, queries("limits")["resume_mail"], values)
    return str(row.name)


async def lanes(
    connection: Connection,
    *,
    limit: int,
    after: tuple[str, str, str] | None = None,
    stream: str | None = None,
    site: str | None = None,
) -> list[Any]:
    """Return the tenant's active lanes by stream, priority and site, and what stops each.

    `name stream priority site changed_at kind scope stopped_name until words`; `kind` is None, or `restore`,
    `pause`, `relay`, `limit` or `workers`. `after` is stream, priority (a word) and site of the last lane seen.
    """
    after_stream, after_word, after_site = after or (None, None, None)
    return await fetch_many(
        connection,
        queries("limits")["lanes"],
        {
            "limit": limit,
            "stream": stream,
            "site": site,
            "after_stream": after_stream,
            "after_priority": None if after_word is None else PRIORITIES[after_word],
            "after_site": after_site,
        },
    )


async def stops(connection: Connection, wanted: Sequence[tuple[str, str, str]]) -> list[Any]:
    """Return what stops lanes of the tenant, each a stream, priority (a word) and site, in their order.

    `name stream priority site kind scope stopped_name until words`, as `lanes` has them.
    """
    values = {
        "streams": [stream for stream, _, _ in wanted],
        "priorities": [PRIORITIES[word] for _, word, _ in wanted],
        "sites": [site for _, _, site in wanted],
    }
    return await fetch_many(connection, queries("limits")["lane_stops"], values)
