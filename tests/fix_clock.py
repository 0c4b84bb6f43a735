"""Time in test databases: `pgmail.now()` moves when a test says so.

    def test_something(db, db_clock):
        db_clock.advance(3600)          # an hour has passed, for every session of this database
        db_clock.freeze()               # and now it stands still, `advance` apart

The function is replaced when the fixture is asked for, so other tests run with the real one. It stays STABLE,
and is evaluated where the original is. Only `pgmail.now()` moves: what PostgreSQL and Python call now does
not.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta

import psycopg
import pytest

from tests.fix_db import Database

_REPLACE_NOW = """
    create schema pgmail_test;
    create table pgmail_test.clock (shift interval not null default '0', frozen_at timestamptz);
    insert into pgmail_test.clock default values;
    grant usage on schema pgmail_test to public;
    grant select on pgmail_test.clock to public;
    create or replace function pgmail.now() returns timestamptz language sql stable parallel safe
    as $$ select coalesce(frozen_at, statement_timestamp()) + shift from pgmail_test.clock $$;
"""


class DatabaseClock:
    """The clock of one test database."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection
        connection.execute(_REPLACE_NOW)

    def now(self) -> datetime:
        """What `pgmail.now()` says."""
        return self._connection.execute("select pgmail.now()").fetchone()[0]

    def advance(self, by: float | timedelta) -> datetime:
        """Move time on by seconds or a timedelta (back, when negative); the new time."""
        step = by if isinstance(by, timedelta) else timedelta(seconds=by)
        self._connection.execute("update pgmail_test.clock set shift = shift + %s", [step])
        return self.now()

    def freeze(self, at: datetime | None = None) -> datetime:
        """Stop time, at `at` (aware) or where it is; the time at which it stands."""
        self._connection.execute(
            "update pgmail_test.clock set frozen_at = coalesce(%s, pgmail.now()), shift = '0'", [at]
        )
        return self.now()

    def thaw(self) -> datetime:
        """Let time run on from where it stands."""
        self._connection.execute(
            "update pgmail_test.clock set frozen_at = null, shift = pgmail.now() - statement_timestamp()"
        )
        return self.now()


@pytest.fixture
def db_clock(db: Database) -> Iterator[DatabaseClock]:
    """Time in the test's database, to be moved at will. Ask for it before connecting anything to `db`."""
    with db.connect() as connection:
        yield DatabaseClock(connection)
