"""What `pgmail bench` asks of the database it made. Synchronous: it waits for workers, it is none."""

from __future__ import annotations

from typing import Any, NamedTuple

import psycopg
from psycopg import sql
from psycopg.rows import namedtuple_row

from pgmail import sqlfiles

_Q = sqlfiles.queries("bench")
ROLES = ("api", "worker", "maintain", "producer", "reader", "admin")


class Sent(NamedTuple):
    """How many mails have an outcome, and seconds from the first to the last."""

    mails: int
    seconds: float


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


def server_version(dsn: str) -> str:
    """Such as `18.4`."""
    return str(_one(dsn, "server_version").version)


def save_template(dsn: str, name: str, subject: str, text: str, html: str) -> None:
    """Publish a template that needs `name`."""
    _one(dsn, "save_template", name=name, subject=subject, text=text, html=html)


def fill(dsn: str, mails: int, *, template: str, sites: int) -> None:
    """Queue mails, a thousand a transaction, and leave the tables as autovacuum would."""
    for low in range(1, mails + 1, 1000):
        high = min(low + 999, mails)
        _one(dsn, "fill", low=low, high=high, template=template, sites=sites)
    warm(dsn)


def warm(dsn: str) -> None:
    """Fold touches and analyse."""
    _one(dsn, "fold")
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(_Q["vacuum"].text.encode())


def sent(dsn: str) -> Sent:
    """How many outcomes there are."""
    row = _one(dsn, "sent")
    return Sent(row.count, row.seconds)


def wal(dsn: str) -> int:
    """Bytes of WAL written so far."""
    return int(_one(dsn, "wal").bytes)


def messages(dsn: str) -> int:
    """Emails enqueued so far."""
    return int(_one(dsn, "messages").count)


def _one(dsn: str, query: str, /, **params: object) -> Any:
    with psycopg.connect(dsn, autocommit=True, row_factory=namedtuple_row) as connection:
        cursor = connection.execute(_Q[query].text.encode(), params or None)
        return cursor.fetchone()


def _filled(name: str, **parts: sql.Composable) -> sql.Composed:
    return sql.SQL(_Q[name].text).format(**parts)
