"""Mail that is held in doubt: it may have been sent, and a person decides. Acts as the tenant of the connection.

What can go wrong: it is resolved as not sent and was, which makes a copy, or the other way, which loses a mail. So
who decided, and why, stands in the events of each and in `audit`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import msgspec
from psycopg import AsyncConnection
from psycopg.types.json import Jsonb

from pgmail.sqlfiles import queries
from pgmail.store.database import fetch_many, fetch_one
from pgmail.store.emails import MAX_ACTS, Page

Connection = AsyncConnection[Any]
How = Literal["assume_sent", "resend"]


class DoubtFilter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which mail in doubt; None is any. `doubted_after` is included, `doubted_before` is not."""

    stream: str | None = None
    site: str | None = None
    relay: str | None = None
    worker: int | None = None
    recipient: str | None = None
    doubted_after: datetime | None = None
    doubted_before: datetime | None = None


def as_json(filter: msgspec.Struct, streams: Sequence[str] | None = None) -> Jsonb:
    """Return a filter as the SQL functions take it: without what is None. `streams`: of these only."""
    given = msgspec.to_builtins(filter) | {"streams": streams}
    return Jsonb({key: value for key, value in given.items() if value is not None})


async def listing(
    connection: Connection, filter: DoubtFilter, page: Page, streams: Sequence[str] | None = None
) -> tuple[list[Any], bool]:
    """Return a page of what is held in doubt, newest email first, and whether there are more that way.

    `streams`: of these only. Raises Refused: `invalid_address`.
    """
    rows = await fetch_many(
        connection, queries("doubts")["list"], page.bounds() | {"filter": as_json(filter, streams)}
    )
    if page.before is not None:
        rows.reverse()
    return page.cut(rows)


async def show(connection: Connection, id: UUID) -> list[Any]:
    """Return what is held in doubt of an email, or the one recipient, in full."""
    return await fetch_many(connection, queries("doubts")["show"], {"id": id})


async def resolve(
    connection: Connection,
    how: How,
    wanted: Sequence[UUID] | DoubtFilter,
    why: str | None,
    streams: Sequence[str] | None = None,
) -> tuple[int, bool]:
    """End the doubt of ids (of recipients or emails) or by filter; how many, and whether there may be more.

    By filter it takes `MAX_ACTS` at a time, of `streams` only. Raises Refused: `not_found` (404), `invalid_field`,
    `invalid_address`.
    """
    if isinstance(wanted, DoubtFilter):
        values = {"how": how, "filter": as_json(wanted, streams), "why": why, "most": MAX_ACTS}
        row: Any = await fetch_one(connection, queries("doubts")["resolve_all"], values)
        return int(row.done), row.done >= MAX_ACTS
    row = await fetch_one(
        connection, queries("doubts")["resolve"], {"how": how, "ids": list(wanted), "why": why}
    )
    return int(row.done), False
