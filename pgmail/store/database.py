"""Connections to PostgreSQL: a pool that opens late, heals by itself and speaks in named queries.

A process has one `Database` a role. Connections are autocommit, so that no transaction is open unless a caller
opens one, and prepare no statements under a name when a pooler sits in between (`pooled`), for the next statement
may run on another connection of its own. Opening never waits for the server: with the database away, `connection`
raises `DatabaseAway` after `wait_seconds`, and works again by itself once the server is back.

A server may also fall silent: its host loses power, or a firewall forgets the connection. No octet and no error
comes then, for ever. TCP is told to find out in about ten seconds; where something in between (a proxy) answers in
the server's stead it cannot, so who must not stand still gives a limit of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import structlog
from psycopg import AsyncConnection, AsyncCursor
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import DictRow, dict_row, namedtuple_row
from psycopg_pool import AsyncConnectionPool

from pgmail import sqlfiles
from pgmail.errors import DatabaseAway
from pgmail.metrics.counts import Sample
from pgmail.sqlfiles import Query
from pgmail.store.faults import translate

Connection = AsyncConnection[Any]
Params = Sequence[object] | Mapping[str, object] | None

_Q = sqlfiles.queries("presence")
_log = structlog.get_logger()

# Milliseconds and seconds. What was written and is not acknowledged, and who waits for an answer, find out in time.
_KEEPALIVE = {
    "tcp_user_timeout": 10_000,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
}


def keepalive(dsn: str) -> dict[str, int]:
    """What a connection to `dsn` is made with so that it notices a server that fell silent; the DSN's own word wins."""
    try:
        said = conninfo_to_dict(dsn)
    except psycopg.Error:
        return {}  # who connects says what is wrong with it
    return {name: value for name, value in _KEEPALIVE.items() if name not in said}


@contextlib.contextmanager
def unless_silent(connection: AsyncConnection[Any], seconds: float | None) -> Iterator[None]:
    """Break a connection that is in use for longer than so many seconds: who waits for it fails, nobody gets it again.

    Its socket is shut down. To cancel who waits would not do: psycopg then asks the server to cancel the statement,
    and waits for the silent connection to say that it did.
    """
    if seconds is None:
        yield
        return

    def give_up() -> None:
        _log.warning("database.silent", seconds=seconds)
        # What has arrived already is still read: a process that was held up itself loses nothing.
        with (
            contextlib.suppress(OSError, psycopg.Error),
            socket.socket(fileno=os.dup(connection.fileno())) as twin,
        ):
            twin.shutdown(socket.SHUT_RDWR)

    timer = asyncio.get_running_loop().call_later(seconds, give_up)
    try:
        yield
    finally:
        timer.cancel()


async def pooled(connection: AsyncConnection[Any]) -> bool:
    """Tell whether a pooler sits in between: the process that answers is not the one that the greeting named.

    Poolers make up the key by which a client cancels (BackendKeyData), and the process id in it. One that passes
    prepared statements on (pgbouncer from 1.21) is treated like one that does not.
    """
    cursor = await connection.execute(_Q["server_process"].text.encode(), prepare=False)
    row = await cursor.fetchone()
    return row is not None and row[0] != connection.info.backend_pid


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
        idle_seconds: float = 600.0,
        answer_seconds: float | None = None,
        greet: Callable[[AsyncConnection[Any]], Awaitable[None]] | None = None,
    ) -> None:
        """`low` and `high` bound the number of connections; `name` is what `pg_stat_activity` shows.

        `check` tries a connection before lending it, a round trip each time: for who answers people, and would
        rather be slow than say that the database is away because it was a moment ago.

        Of the connections above `low`, one is closed whenever it was not needed for `idle_seconds`.
        A connection that is lent for longer than `answer_seconds` counts as silent: it is broken, and `DatabaseAway`
        raised. For who lends for a statement or two, each of which takes milliseconds.
        `greet` is awaited with each new connection before it is lent: another server may be at its other end.
        """
        self.dsn = dsn
        self._answer_seconds = answer_seconds

        async def configure(connection: AsyncConnection[Any]) -> None:
            if await pooled(connection):
                connection.prepare_threshold = None
            if greet is not None:
                await greet(connection)

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
            kwargs=keepalive(dsn)
            | {
                "autocommit": True,
                "application_name": name,
                "prepare_threshold": 3,
                "connect_timeout": max(2, int(wait_seconds)),
            },
            check=AsyncConnectionPool.check_connection if check else None,
            configure=configure,
        )

    async def open(self) -> None:
        """Start the pool without waiting for the server."""
        await self._pool.open(wait=False)

    async def close(self) -> None:
        """Close all connections. Twice is fine."""
        await self._pool.close()

    def patient(self, answer_seconds: float | None) -> Database:
        """The same pool for who has longer statements, or other limits to them."""
        other = copy.copy(self)
        other._answer_seconds = answer_seconds  # noqa: SLF001 - it is one of us
        return other

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[AsyncConnection[Any]]:
        """Lend a connection; errors come out as pgmail's own (`Refused`, `DatabaseAway`, `FencedOut`)."""
        try:
            async with self._pool.connection() as connection:
                with unless_silent(connection, self._answer_seconds):
                    yield connection
        except Exception as error:
            if (known := translate(error)) is not None:
                raise known from error
            raise

    async def borrow(self) -> Connection:
        """Lend a connection until it is given back: to who keeps one. Raises psycopg's errors, not pgmail's own."""
        return await self._pool.getconn()

    async def give_back(self, connection: Connection) -> None:
        """Take back what was borrowed; a connection that is broken is replaced."""
        await self._pool.putconn(connection)

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

    def samples(self) -> Iterator[Sample]:
        """How full the pool is, and how long it was waited for."""
        stats, name = self._pool.get_stats(), (self._pool.name.removeprefix("pgmail").strip(" -") or "all",)
        yield Sample("pool_connections", name, stats.get("pool_size", 0))
        yield Sample("pool_idle", name, stats.get("pool_available", 0))
        yield Sample("pool_waiting", name, stats.get("requests_waiting", 0))
        yield Sample("pool_requests", name, stats.get("requests_num", 0))
        yield Sample("pool_wait_seconds", name, stats.get("requests_wait_ms", 0) / 1000)
        yield Sample("pool_errors", name, stats.get("requests_errors", 0))
        yield Sample("pool_lost", name, stats.get("connections_lost", 0))

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


def storable(text: str | None) -> str | None:
    """Text as PostgreSQL takes it: no NUL, no lone surrogate. What cannot be written would be lost."""
    if text is None or text.isprintable():
        return text
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
