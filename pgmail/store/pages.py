"""What pages of the dashboard ask of the database besides what the API asks. Acts as the tenant of the connection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import UUID

from psycopg import AsyncConnection

from pgmail.sqlfiles import queries
from pgmail.store.database import fetch_many, fetch_one

Connection = AsyncConnection[Any]


class Own(NamedTuple):
    """What is one recipient's own: `variables` are JSON, or sealed with the data key `key_id`, or None."""

    message_id: UUID
    variables: bytes | None
    key_id: int | None


async def why(connection: Connection, ids: Sequence[UUID]) -> str:
    """Return a line for each of some recipients, why it is where it is. Refused `not_found` (404)."""
    row: Any = await fetch_one(connection, queries("dashboard")["why"], {"ids": list(ids)})
    return str(row.answer or "")


async def own(connection: Connection, id: UUID) -> Own | None:
    """Return what is a recipient's own; None for one that the tenant has not."""
    row: Any = await fetch_one(connection, queries("dashboard")["preview"], {"id": id})
    if row is None:
        return None
    return Own(row.message_id, None if row.variables is None else bytes(row.variables), row.key_id)


async def states(connection: Connection, ids: Sequence[UUID]) -> dict[UUID, list[str]]:
    """Return where the recipients of these emails stand; an email that is gone is left out."""
    rows = await fetch_many(connection, queries("dashboard")["states"], {"ids": list(ids)})
    return {row.id: list(row.states) for row in rows}


async def newer(
    connection: Connection,
    id: UUID | None,
    stream: str | None = None,
    streams: Sequence[str] | None = None,
    *,
    only_tests: bool = False,
) -> int:
    """Return how many emails came in after this one (None: ever), a hundred at most; of a stream, or of `streams`."""
    values = {
        "id": id,
        "stream": stream,
        "streams": None if streams is None else list(streams),
        "only_tests": only_tests,
    }
    row: Any = await fetch_one(connection, queries("dashboard")["newer"], values)
    return int(row.n)
