"""One connection for one command: what the command line needs, where a pool would be too much.

What can go wrong comes out in pgmail's own words: `Refused`, `DatabaseAway`, and `StatementFailed` for
whatever else PostgreSQL says no to, such as a right that the role lacks. All three are one line for a person.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from psycopg import AsyncConnection, errors
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row

from pgmail.errors import DatabaseAway, PgmailError
from pgmail.sqlfiles import Query
from pgmail.store.faults import first_line, translate

Connection = AsyncConnection[Any]
WAIT_SECONDS = 5  # for a connection, unless the address says otherwise


class StatementFailed(PgmailError):  # noqa: N818 - it is a state of affairs
    """PostgreSQL refused a statement for a reason that is neither the law's nor a broken connection."""


@asynccontextmanager
async def lend(dsn: str, *, name: str = "pgmail cli") -> AsyncIterator[Connection]:
    """Open an autocommit connection and close it afterwards."""
    try:
        facts: dict[str, Any] = {"autocommit": True, "application_name": name, "prepare_threshold": None}
        if "connect_timeout" not in conninfo_to_dict(dsn):
            facts["connect_timeout"] = WAIT_SECONDS
        async with await AsyncConnection.connect(dsn, **facts) as connection:
            yield connection
    except psycopg.Error as error:
        raise _known(error) from error


async def fetch_dicts(
    connection: Connection, query: Query, params: Mapping[str, object] | None = None
) -> list[dict[str, Any]]:
    """Run a query and return all rows as dictionaries. Raises as `lend` does, at once."""
    try:
        async with connection.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(query.text.encode(), params)
            return await cursor.fetchall() if cursor.description else []
    except psycopg.Error as error:
        raise _known(error) from error


def _known(error: psycopg.Error) -> PgmailError:
    if (known := translate(error)) is not None:
        if isinstance(known, DatabaseAway):
            return DatabaseAway(f"the database cannot be reached: {known}")
        return known
    text = error.diag.message_primary or first_line(error)
    if isinstance(error, errors.InsufficientPrivilege):
        return StatementFailed(f"{text}: this database role may not do that; use the owner's or an admin's")
    return StatementFailed(text)
