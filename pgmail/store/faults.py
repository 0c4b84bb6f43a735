"""Database errors as pgmail's own: one table, used wherever a statement runs.

`Refused` for SQLSTATE class PM (what the law of ways in refused), `DatabaseAway` for a connection that is not
there or broke. Everything else is a fault of ours and stays as it is.
"""

from __future__ import annotations

import psycopg
from psycopg import errors
from psycopg_pool import PoolTimeout

from pgmail.errors import DatabaseAway, PgmailError, Refused, SchemaMismatch

# States in which the server answers, but not for us and not now: as good as away. 57P01..57P05 shutting down or
# starting, 25P03 and 25P04 we ourselves were too slow in a transaction, 25006 a standby that was not promoted yet,
# 40001 and 40P01 another transaction came first. Class 53 is want of connections, memory or disk; 58 and XX are the
# server's own trouble, with its files above all, from which a worker must not die.
_AWAY = frozenset({"57P01", "57P02", "57P03", "57P05", "25P03", "25P04", "25006", "40001", "40P01"})


class Busy(DatabaseAway):
    """A lock was not to be had in time, or the statement was cancelled: nothing was changed; try again."""


_BUSY = frozenset({"55P03", "57014"})
_NO_SCHEMA = frozenset({"3F000", "42P01", "42883"})  # a schema, table or function that is not there


class FencedOut(PgmailError):  # noqa: N818 - the word of the design
    """This worker was declared dead; its leases belong to others. It must start over under a new epoch."""


def translate(error: Exception) -> PgmailError | None:
    """Return pgmail's own error for one of psycopg's, or None when it is none of the expected ones."""
    if isinstance(error, PoolTimeout):
        return DatabaseAway("no database connection became free in time")
    if not isinstance(error, psycopg.Error):
        return None
    state = error.sqlstate or ""
    if state == "PM410":
        return FencedOut(error.diag.message_primary or "fenced out")
    if state in _BUSY:
        return Busy(first_line(error))
    if state in _NO_SCHEMA and "pgmail" in (error.diag.message_primary or ""):
        return SchemaMismatch(
            f"the database holds no pgmail schema, or not all of it ({first_line(error)}); run `pgmail db upgrade`"
        )
    if state.startswith("PM"):
        return refusal(
            state, error.diag.constraint_name, error.diag.message_detail, error.diag.message_primary
        )
    if (
        state in _AWAY
        or state.startswith(("53", "58", "XX"))
        or (isinstance(error, psycopg.OperationalError) and not state)
    ):
        return DatabaseAway(first_line(error))
    if isinstance(error, errors.OperationalError) and state.startswith("08"):
        return DatabaseAway(first_line(error))
    return None


def refusal(state: str, code: str | None, field: str | None, message: str | None) -> Refused:
    """Build the error from what SQL raised: CONSTRAINT is the code, DETAIL the field, PM422 the status."""
    field, message = field or "", message or "refused"
    status = int(state[2:]) if state[2:].isdigit() else 422
    return Refused(code or "refused", field, message.removeprefix(f"{field}: "), status)


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, which is the one for people."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
