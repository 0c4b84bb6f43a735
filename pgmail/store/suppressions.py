"""Suppressions in the database: who gets no mail, and why. Acts as the tenant of the connection.

An entry is (address, stream); stream '' is every stream. Addresses are normalised as recipients are: lower
case, domain in A-labels.
"""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import Any, NamedTuple

from psycopg import AsyncConnection

from pgmail.sqlfiles import queries
from pgmail.store.database import fetch_many, fetch_one

Connection = AsyncConnection[Any]
REASONS = ("bounced", "complained", "unsubscribed", "manual", "invalid")
COLUMNS = ("address", "stream", "reason", "source", "created_at", "created_by", "expires_at")  # of an export
PAGE = 5_000  # entries of an export in memory at a time


async def add(
    connection: Connection,
    address: str,
    *,
    reason: str = "manual",
    source: str | None = None,
    stream: str = "",
    expires_at: datetime | None = None,
) -> str:
    """Suppress an address and return its normal form; an entry that is there is replaced.

    Raises Refused: `invalid_address`, `invalid_reason`.
    """
    row: Any = await fetch_one(
        connection,
        queries("suppressions")["add"],
        {"address": address, "reason": reason, "source": source, "stream": stream, "expires_at": expires_at},
    )
    return str(row.address)


async def remove(
    connection: Connection, address: str, *, stream: str = "", reason: str | None = None
) -> bool:
    """Let an address have mail again; False if it was not suppressed on this stream."""
    row: Any = await fetch_one(
        connection,
        queries("suppressions")["remove"],
        {"address": address, "stream": stream, "reason": reason},
    )
    return bool(row.removed)


class Entry(NamedTuple):
    """An entry to be stored: stream '' is every stream, without `created_at` it is made now."""

    address: str
    stream: str = ""
    reason: str = "manual"
    source: str | None = None
    created_at: datetime | None = None
    expires_at: datetime | None = None


async def add_many(
    connection: Connection,
    entries: Sequence[Entry],
    *,
    strict: bool = True,
    store: bool = True,
    audit: int | None = None,
) -> Any:
    """Suppress up to 10,000 at once: `audit added changed unchanged faults entries`.

    `strict`: the first fault refuses them all, its field led by its position (`/2/reason`). Otherwise `faults`
    are objects of position, code, field and message, and the rest is stored. `entries` are pairs of address
    and stream, as stored. With `store` false nothing is. `audit` of an earlier answer makes it one import.
    """
    columns = list(zip(*entries, strict=True)) or [()] * 6
    names = ("addresses", "streams", "reasons", "sources", "created", "expires")
    values = {name: list(column) for name, column in zip(names, columns, strict=True)}
    return await fetch_one(
        connection,
        queries("suppressions")["add_many"],
        values | {"strict": strict, "store": store, "audit": audit},
    )


async def pages(
    lend: Callable[[], AbstractAsyncContextManager[Connection]], **chosen: str | None
) -> AsyncIterator[list[Any]]:
    """Walk all entries that suppress something, a page at a time, each in a statement of its own.

    No transaction and no connection stays open while a page is written out. Narrowed as `listing`.
    """
    after: tuple[str, str] | None = None
    while True:
        async with lend() as connection:
            rows = await listing(connection, limit=PAGE, after=after, expired=False, **chosen)
        if not rows:
            return
        yield rows
        after = rows[-1].address, rows[-1].stream


async def export(
    lend: Callable[[], AbstractAsyncContextManager[Connection]], **chosen: str | None
) -> AsyncIterator[str]:
    """Walk as `pages`, as the text of a CSV file (RFC 4180) that `domain.suppression_file` reads back.

    The first page is read before this returns: a database that is away is told before an answer begins.
    """
    found = pages(lend, **chosen)
    first: list[Any] = await anext(found, [])
    return _texts(first, found)


async def _texts(first: list[Any], found: AsyncIterator[list[Any]]) -> AsyncIterator[str]:
    yield _lines([COLUMNS])
    yield _lines(_cells(row) for row in first)
    async for rows in found:
        yield _lines(_cells(row) for row in rows)


def _cells(row: Any) -> list[Any]:
    values = (getattr(row, name) for name in COLUMNS)
    return [
        value.astimezone(UTC).isoformat().replace("+00:00", "Z") if isinstance(value, datetime) else value
        for value in values
    ]


def _lines(rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()


async def listing(
    connection: Connection,
    *,
    limit: int = 100,
    after: tuple[str, str] | None = None,
    expired: bool = True,
    address: str | None = None,
    stream: str | None = None,
    reason: str | None = None,
) -> list[Any]:
    """Return entries by address and stream: `address stream reason source created_at created_by expires_at`.

    `after` is the last (address, stream) already seen; without `expired` what suppresses nothing any more is
    left out; the others narrow the list to what equals them.
    """
    after_address, after_stream = after or (None, None)
    return await fetch_many(
        connection,
        queries("suppressions")["list"],
        {
            "limit": limit,
            "expired": expired,
            "after_address": after_address,
            "after_stream": after_stream,
            "address": address,
            "stream": stream,
            "reason": reason,
        },
    )
