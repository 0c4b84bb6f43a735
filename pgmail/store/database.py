"""Connections to PostgreSQL: a pool that opens late, heals by itself and speaks in named queries.

A process has one `Database` a role. Connections are autocommit, so that no transaction is open unless a caller
opens one, and prepare no statements under a name when a transaction-mode pooler sits in between
(`prepare=False`). Opening never waits for the server: with the database away, `connection` raises
`DatabaseAway` after `wait_seconds`, and works again by itself once the server is back.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from psycopg import AsyncConnection, AsyncCursor
from psycopg.rows import DictRow, dict_row, namedtuple_row
from psycopg_pool import AsyncConnectionPool

from pgmail.errors import DatabaseAway
from pgmail.sqlfiles import Query
from pgmail.store.faults import translate

Params = Sequence[object] | Mapping[str, object] | None


class Database:
    """A pool of autocommit connections under one role."""

    def __init__(
        self,
        dsn: str,
        *,
        name: str,
        low: int = 1,
        high: int = 4,
        wait_seconds: float = 5.0,
        check: bool = False,
        prepare: bool = True,
        idle_seconds: float = 600.0,
        greet: Callable[[AsyncConnection[Any]], Awaitable[None]] | None = None,
    ) -> None:
        """`low` and `high` bound the number of connections; `name` is what `pg_stat_activity` shows.

        `check` tries a connection before lending it, a round trip each time: for who answers people, and would
        rather be slow than say that the database is away because it was a moment ago.

        Of the connections above `low`, one is closed whenever it was not needed for `idle_seconds`.
        `greet` is awaited with each new connection before it is lent: another server may be at its other end.
        """
        self.dsn = dsn
        self._pool: AsyncConnectionPool[AsyncConnection[Any]] = AsyncConnectionPool(
            dsn,
            min_size=low,
            max_size=high,
            open=False,
            timeout=wait_seconds,
            name=name,
            max_idle=idle_seconds,
            # Who waits for a connection is who tries again; after that the next who asks does.
            reconnect_timeout=wait_seconds,
            kwargs={
                "autocommit": True,
                "application_name": name,
                "prepare_threshold": 3 if prepare else None,
                "connect_timeout": max(2, int(wait_seconds)),
            },
            check=AsyncConnectionPool.check_connection if check else None,
            configure=greet,
        )

    async def open(self) -> None:
        """Start the pool without waiting for the server."""
        await self._pool.open(wait=False)

    async def close(self) -> None:
        """Close all connections. Twice is fine."""
        await self._pool.close()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[AsyncConnection[Any]]:
        """Lend a connection; errors come out as pgmail's own (`Refused`, `DatabaseAway`, `FencedOut`)."""
        try:
            async with self._pool.connection() as connection:
                yield connection
        except Exception as error:
            if (known := translate(error)) is not None:
                raise known from error
            raise

    async def one(self, query: Query, params: Params = None) -> Any | None:
        """Run a query and return its first row (by attribute), or None."""
        async with self.connection() as connection:
            return await fetch_one(connection, query, params)

    async def many(self, query: Query, params: Params = None) -> list[Any]:
        """Run a query and return all rows (by attribute)."""
        async with self.connection() as connection:
            return await fetch_many(connection, query, params)

    async def tuples(self, query: Query, params: Params = None) -> list[tuple[Any, ...]]:
        """Run a query and return all rows as tuples, read in binary: for the hot path."""
        async with self.connection() as connection, connection.cursor(binary=True) as cursor:
            await cursor.execute(query.text.encode(), params)
            return await cursor.fetchall()

    async def dicts(self, query: Query, params: Params = None) -> list[DictRow]:
        """Run a query and return all rows as dictionaries."""
        async with self.connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(query.text.encode(), params)
            return await cursor.fetchall()

    async def run(self, query: Query, params: Params = None) -> None:
        """Run a query whose rows nobody wants."""
        async with self.connection() as connection:
            await connection.execute(query.text.encode(), params)

    async def reachable(self) -> bool:
        """Tell whether the server answers now."""
        try:
            async with self.connection() as connection:
                await connection.execute(b"")  # a round trip and nothing else
        except DatabaseAway:
            return False
        return True


async def fetch_each(
    connection: AsyncConnection[Any], asked: Sequence[tuple[Query, Params]]
) -> list[list[tuple[Any, ...]]]:
    """Run several queries in one round trip and return the rows of each as tuples, read in binary.

    They are one transaction, if the caller opened none.
    """
    if len(asked) == 1:
        # Outside of a pipeline a statement and its Sync leave together: a process that freezes in between is not waited
        # for, its locks held and no timeout running.
        (query, params), cursor = asked[0], connection.cursor(binary=True)
        await cursor.execute(query.text.encode(), params)
        return [await cursor.fetchall()]
    async with connection.pipeline():
        cursors = []
        for query, params in asked:
            cursor = connection.cursor(binary=True)
            cursors.append(await cursor.execute(query.text.encode(), params))
    # Its end synchronises, and only now are rows asked for: to ask inside would have the server answer and then
    # wait, its transaction open and no timeout running, for a process that may be frozen.
    return [await cursor.fetchall() for cursor in cursors]


async def fetch_one(connection: AsyncConnection[Any], query: Query, params: Params = None) -> Any | None:
    """Run a query on a lent connection and return its first row (by attribute), or None."""
    cursor: AsyncCursor[Any]
    async with connection.cursor(row_factory=namedtuple_row) as cursor:
        await cursor.execute(query.text.encode(), params)
        return await cursor.fetchone()


async def fetch_many(connection: AsyncConnection[Any], query: Query, params: Params = None) -> list[Any]:
    """Run a query on a lent connection and return all rows (by attribute)."""
    cursor: AsyncCursor[Any]
    async with connection.cursor(row_factory=namedtuple_row) as cursor:
        await cursor.execute(query.text.encode(), params)
        return await cursor.fetchall()
