"""A database of pgmail's own on somebody's server: made, migrated by others, used, dropped. For `pgmail demo`.

Its name is random, its roles have names of their own, and both carry a mark: a real pgmail on the same server
shares nothing with it, roles and their passwords included. `sweep` removes what a run that was killed left.

What can go wrong: the named database holds a pgmail schema, or its role may create neither databases nor
roles (`Refused`); the server is away (`DatabaseAway`). A database without the mark is never dropped, whatever
its name; a run killed between making and marking one leaves it for a person.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import namedtuple_row

from pgmail import sqlfiles
from pgmail.errors import PgmailError, Refused
from pgmail.sqlfiles import Query
from pgmail.store.faults import first_line, translate

Connection = psycopg.Connection[Any]

STEM: Final = "pgmail_demo_"
MARK: Final = "Made by `pgmail demo`, which may drop it at any time."
WAIT_SECONDS: Final = 5

_Q = sqlfiles.queries("scratch")


class Scratch(NamedTuple):
    """A database that was made. `owner` is a connection string; `passwords` has those of its roles."""

    name: str
    owner: str
    passwords: Mapping[str, str]

    @property
    def prefix(self) -> str:
        """The first part of its roles' names."""
        return f"{self.name}_"

    def dsn(self, role: str) -> str:
        """A connection string for `api`, `worker`, `maintain`, `producer`, `reader` or `admin`."""
        return make_conninfo(self.owner, user=self.prefix + role, password=self.passwords[role])


@contextlib.contextmanager
def connect(dsn: str, name: str = "pgmail demo") -> Iterator[Connection]:
    """Lend an autocommit connection whose rows are read by attribute; errors come out as pgmail's own."""
    with (
        known_errors(),
        psycopg.connect(
            dsn,
            autocommit=True,
            application_name=name,
            connect_timeout=WAIT_SECONDS,
            row_factory=namedtuple_row,
        ) as connection,
    ):
        yield connection


@contextlib.contextmanager
def known_errors() -> Iterator[None]:
    """Turn what the driver raises into `Refused`, `DatabaseAway` or a `PgmailError` of one line."""
    try:
        yield
    except psycopg.Error as error:
        if (known := translate(error)) is not None:
            raise known from error
        raise PgmailError(first_line(error)) from error


def run(connection: Connection, query: Query, params: Mapping[str, object] | None = None) -> Any:
    """Run a query on a lent connection; its cursor."""
    return connection.execute(query.text.encode(), params)


def run_named(connection: Connection, query: Query, **parts: str | sql.Literal) -> None:
    """Run a query whose `{parts}` are identifiers, given as texts, or literals."""
    quoted = {key: sql.Identifier(part) if isinstance(part, str) else part for key, part in parts.items()}
    connection.execute(sql.SQL(query.text).format(**quoted))


def check_server(dsn: str) -> None:
    """See whether a scratch database can be made on this server, and should be.

    Raises Refused: `holds_pgmail` (409) when the named database has a pgmail schema, `insufficient_privilege`
    (403) without the right to create databases and roles; DatabaseAway.
    """
    with connect(dsn) as connection:
        here = run(connection, _Q["about_here"]).fetchone()
    if here.holds_pgmail:
        raise Refused(
            "holds_pgmail",
            "",
            f"the database {here.database} holds a pgmail schema, and a demo must never touch real mail; name "
            "another database of the server, or none, and the demo starts a PostgreSQL of its own",
            409,
        )
    missing = [
        word
        for word, may in (("CREATEDB", here.may_create_databases), ("CREATEROLE", here.may_create_roles))
        if not may
    ]
    if missing:
        raise Refused(
            "insufficient_privilege",
            "",
            f"the demo makes a database of its own, and the role {here.role} lacks {' and '.join(missing)}; "
            "name no database, and the demo starts a PostgreSQL of its own",
            403,
        )


def make(dsn: str) -> Scratch:
    """Create an empty database beside the one that `dsn` names, owned by its role."""
    name = STEM + secrets.token_hex(4)
    with connect(dsn) as connection:
        run_named(connection, _Q["create_database"], database=name)
        run_named(connection, _Q["mark_database"], database=name, mark=sql.Literal(MARK))
    return Scratch(name, make_conninfo(dsn, dbname=name), {})


def give_passwords(scratch: Scratch) -> Scratch:
    """Give each role of a migrated database a random password. Raises Refused when the roles are not there."""
    passwords = {}
    with connect(scratch.owner) as connection:
        for row in run(connection, _Q["roles"], {"prefix": scratch.prefix}).fetchall():
            password = secrets.token_urlsafe(24)
            verifier = connection.pgconn.encrypt_password(
                password.encode(), row.name.encode(), b"scram-sha-256"
            )
            literal = sql.Literal(verifier.decode())
            run_named(connection, _Q["set_password"], role=row.name, verifier=literal)
            passwords[row.name.removeprefix(scratch.prefix)] = password
    if not passwords:
        raise Refused("insufficient_privilege", "", "the demo's roles could not be created", 403)
    return scratch._replace(passwords=passwords)


def drop(dsn: str, name: str) -> None:
    """Drop a scratch database, whoever is connected to it, and its roles."""
    with connect(dsn) as connection:
        run_named(connection, _Q["drop_database_now"], database=name)
        for row in run(connection, _Q["roles"], {"prefix": f"{name}_"}).fetchall():
            run_named(connection, _Q["drop_role"], role=row.name)


def sweep(dsn: str) -> list[str]:
    """Drop what runs that were killed left on the server, unless somebody is connected; the databases' names."""
    gone = []
    with connect(dsn) as connection:
        for row in run(connection, _Q["leftovers"], {"stem": STEM, "mark": MARK}).fetchall():
            with contextlib.suppress(psycopg.errors.ObjectInUse):
                run_named(connection, _Q["drop_database"], database=row.name)
                gone.append(row.name)
        for row in run(connection, _Q["orphans"], {"stem": STEM}).fetchall():
            # Another role's orphan, or one that a person gave something to own: not in our way.
            with contextlib.suppress(
                psycopg.errors.InsufficientPrivilege, psycopg.errors.DependentObjectsStillExist
            ):
                run_named(connection, _Q["drop_role"], role=row.name)
    return gone
