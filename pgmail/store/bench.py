"""What `pgmail bench` asks of the database it made. Synchronous: it waits for workers, it is none.

Functions open a connection for one question; a `Session` keeps one, where questions are asked while something
is measured. What can go wrong is a fault of the bench or of pgmail, and comes out as the driver's own error.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import psycopg
from psycopg import sql
from psycopg.rows import namedtuple_row

from pgmail import sqlfiles

_Q = sqlfiles.queries("bench")
ROLES = ("api", "worker", "maintain", "producer", "reader", "admin")
MOST_PERSONAL = 1000
"""Recipients of one message in personal mode."""


class Sent(NamedTuple):
    """How many mails have an outcome, seconds from the first to the last, and how many came after the first.

    Outcomes are recorded in batches of one time, so those of the first batch took none of the seconds.
    """

    mails: int
    seconds: float
    after_first: int


class WorkerProcess(NamedTuple):
    """A worker that is alive: its process id, and whether it waits to be woken."""

    pid: int
    asleep: bool


class Session:
    """One autocommit connection, for questions that are asked again and again. Not for two threads at once."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection

    def progress(self) -> int:
        """Mails sent so far, by the tallies."""
        return int(self.one("progress").mails)

    def workers(self) -> list[WorkerProcess]:
        """The worker processes that have said they are alive."""
        return [WorkerProcess(*row) for row in self._run("workers").fetchall()]

    def waits(self) -> dict[str, int]:
        """How many of pgmail's sessions wait for what right now; `running` are those that do not."""
        return {row.waits: row.sessions for row in self._run("waits").fetchall()}

    def wal(self) -> int:
        """Bytes of WAL written so far."""
        return int(self.one("wal").bytes)

    def dead_rows(self) -> int:
        """Dead rows in the queue, by the statistics."""
        return int(self.one("dead_rows").rows)

    def fill(self, query: str, low: int, high: int, **params: object) -> None:
        """Queue the mails `low` to `high` with one of the `fill` queries, in one call."""
        self._run(query, low=low, high=high, **params)

    def fill_tenant(self, tenant: int, low: int, high: int) -> None:
        """Queue mails of a tenant, over twenty sites. As the API's role, which may act for any."""
        with self._connection.transaction():
            self._run("act_as", tenant=tenant)
            for first in range(low, high + 1, MOST_PERSONAL):
                self.fill("fill_personal", first, min(first + MOST_PERSONAL - 1, high), lanes=20)

    def send_high(self, address: str) -> tuple[float, float]:
        """Send one mail that is not to wait; when its commit began (Unix time in seconds), and how long it took."""
        with self._connection.transaction():
            self._run("send_high", address=address)
            began = time.time()
        return began, time.time() - began

    def one(self, query: str, /, **params: object) -> Any:
        """The first row of a query."""
        return self._run(query, **params).fetchone()

    def _run(self, query: str, /, **params: object) -> psycopg.Cursor[Any]:
        return self._connection.execute(_Q[query].text.encode(), params or None)


@contextmanager
def session(dsn: str) -> Iterator[Session]:
    """A session, closed afterwards."""
    with psycopg.connect(dsn, autocommit=True, row_factory=namedtuple_row) as connection:
        yield Session(connection)


@contextmanager
def pinned(dsn: str) -> Iterator[None]:
    """Hold a snapshot open, as a long report or a `pg_dump` does: no vacuum takes away what it could still see."""
    with psycopg.connect(dsn) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.execute(_Q["pin"].text.encode())
        yield


def text(name: str) -> str:
    """A statement's text, for pgbench."""
    return _Q[name].text + ";"


def recreate(server: str, database: str) -> None:
    """Drop and create a database on a server of our own."""
    with psycopg.connect(server, autocommit=True) as connection:
        for name in ("drop_database", "create_database"):
            connection.execute(_filled(name, database=sql.Identifier(database)))


def passwords(dsn: str, prefix: str, password: str) -> None:
    """Give every role a password, on a server of our own."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for role in ROLES:
            statement = _filled(
                "set_password", role=sql.Identifier(prefix + role), password=sql.Literal(password)
            )
            connection.execute(statement)


def empty(dsn: str) -> None:
    """Take all mail away, between two measurements. No worker may run."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(_Q["empty"].text.encode())


def server_version(dsn: str) -> str:
    """Such as `18.4`."""
    return str(_one(dsn, "server_version").version)


def save_template(dsn: str, name: str, subject: str, text: str, html: str) -> None:
    """Publish a template that needs `name`."""
    _one(dsn, "save_template", name=name, subject=subject, text=text, html=html)


def create_key(dsn: str, hint: str, hash: bytes) -> None:
    """Let a key in, for the tenant of the connection."""
    _one(dsn, "create_key", hint=hint, hash=hash)


def create_tenants(dsn: str, tenants: int) -> Sequence[int]:
    """Make so many tenants; their ids."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(_Q["create_tenants"].text.encode(), {"tenants": tenants})
        return [row[0] for row in connection.execute(_Q["tenants"].text.encode()).fetchall()]


def fill(dsn: str, mails: int, *, template: str, sites: int, stream: str = "transactional") -> None:
    """Queue mails of a template, a thousand a transaction, and leave the tables as autovacuum would."""
    with session(dsn) as filling:
        for low in range(1, mails + 1, 1000):
            high = min(low + 999, mails)
            filling.fill("fill", low, high, template=template, sites=sites, stream=stream)
    warm(dsn)


def warm(dsn: str) -> None:
    """Fold touches and analyse."""
    with session(dsn) as asking:
        while asking.one("fold").folded:
            pass
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(_Q["vacuum"].text.encode())


def sent(dsn: str) -> Sent:
    """How many outcomes there are."""
    row = _one(dsn, "sent")
    return Sent(row.count, row.seconds, row.after_first)


def wal(dsn: str) -> int:
    """Bytes of WAL written so far."""
    return int(_one(dsn, "wal").bytes)


def messages(dsn: str) -> int:
    """Emails enqueued so far."""
    return int(_one(dsn, "messages").count)


def content_bytes(dsn: str) -> float:
    """Bytes that a message's content takes as it is stored, the mean of some."""
    return float(_one(dsn, "content_bytes").bytes)


def _one(dsn: str, query: str, /, **params: object) -> Any:
    with session(dsn) as asking:
        return asking.one(query, **params)


def _filled(name: str, **parts: sql.Composable) -> sql.Composed:
    return sql.SQL(_Q[name].text).format(**parts)
