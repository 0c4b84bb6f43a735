"""Email in the database as the HTTP API needs it: enqueue, look up, list, change.

`send`, `send_many` and `send_group` are one statement and one transaction each; everything else runs on a
connection lent by `tenant.acting_as`. Rows come back by attribute, named as in sql/queries/emails.sql.

What can go wrong besides what the law refuses: another transaction holds the same idempotency key and does
not finish in three seconds (`idempotency_in_flight`, 409), and a lock that is not to be had for another
reason, which is as good as a database away. A connection that breaks under a statement leaves open whether
the statement was committed; see `send_group` for what is done about that.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
import psycopg
from psycopg import AsyncConnection, errors
from psycopg.types.json import Jsonb
from psycopg_pool import PoolClosed, PoolTimeout

from pgmail.domain.states import IN_QUEUE, State
from pgmail.errors import DatabaseAway, PgmailError, Refused
from pgmail.sqlfiles import queries
from pgmail.store.database import Database, fetch_many, fetch_one
from pgmail.store.faults import Busy
from pgmail.store.hotline import Hotline, Statement
from pgmail.store.keys import Caller

Connection = AsyncConnection[Any]
MAX_ACTS = 1_000  # dead letters that one call retries or discards
LOCK_MS = 3_000  # longest wait for a lock: the patience of one who asked for this one email


class Page(msgspec.Struct, frozen=True):
    """Which part of a list, newest first: at most `limit`, next below `after` or next above `before`."""

    limit: int = 20
    after: UUID | None = None
    before: UUID | None = None

    def bounds(self) -> dict[str, object]:
        """Return the parameters that every list by id takes; one row more tells whether there is more."""
        return {
            "limit": self.limit + 1,
            "below": self.after,
            "above": self.before,
            "newer": self.before is not None,
        }

    def cut(self, rows: list[Any]) -> tuple[list[Any], bool]:
        """Take the row too many off `rows` (newest first); whether there was one."""
        more = len(rows) > self.limit
        if not more:
            return rows, False
        return (rows[1:] if self.before is not None else rows[:-1]), True


class Filter(msgspec.Struct, frozen=True):
    """Which emails: `state` of at least one recipient, `tag` as (name, value), `recipient` normalised.

    `above` and `below` are ids, outside of which no email is listed (`ids.floor` of a moment).
    """

    state: State | None = None
    tag: tuple[str, str] | None = None
    stream: str | None = None
    recipient: str | None = None
    above: UUID | None = None
    below: UUID | None = None

    @property
    def start(self) -> str:
        """The table to walk along: the one that leaves the fewest emails to look at."""
        if self.recipient is not None:
            return "recipient"
        if self.state is State.DEAD:
            return "dead"
        if self.tag is not None:
            return "tag"
        if self.state in IN_QUEUE:
            return "queue"
        return "time" if self.state is None else "outcome"


class Listed(NamedTuple):
    """A page of emails; whether there are, or may be, `more` that way.

    `place` is where the search ended before it had looked at everything: an id to go on after (or before).
    """

    rows: list[Any]
    more: bool
    place: UUID | None


class DeadFilter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which dead letters; None is any. `died_after` is included, `died_before` is not.

    `recipient` is an address, `text` is looked for in the error and the last reply, capitals or not; `template`
    is a name.
    """

    stream: str | None = None
    site: str | None = None
    reason: str | None = None
    recipient: str | None = None
    text: str | None = None
    template: str | None = None
    died_after: datetime | None = None
    died_before: datetime | None = None


class Stored(NamedTuple):
    """What became of one email of a group: its id, or the code, field and message of its fault."""

    id: str | None
    code: str | None = None
    field: str | None = None
    message: str | None = None


class InDoubt(DatabaseAway):
    """The connection broke under a statement: what it was to store may be stored, with the answer lost."""


class GroupUndone(PgmailError):  # noqa: N818 - it is a state of affairs
    """The server rolled a group back for a reason that need not concern every email in it.

    `locked` tells that a lock was not to be had in time; otherwise it was a deadlock, a conflict of snapshots,
    or something that nobody foresaw in one of the bodies. Nothing was stored: each may be sent by itself.
    """

    def __init__(self, reason: str, *, locked: bool) -> None:
        super().__init__(reason)
        self.locked = locked


async def send(database: Database, caller: Caller, email: str, *, keyed: bool) -> UUID:
    """Enqueue one email (JSON, as `domain.email.prepare` leaves it) and return its id.

    `keyed` says that it has an idempotency key. Raises Refused, DatabaseAway and InDoubt.
    """
    try:
        values = {**caller.settings(), "email": email, "lock_timeout": f"{LOCK_MS}ms"}
        row: Any = await database.one(queries("emails")["send"], values)
    except DatabaseAway as error:
        raise _judged(error, keyed=keyed) from error.__cause__
    return UUID(str(row.id))


async def send_many(
    database: Database, caller: Caller, emails: str, *, strict: bool, key: str | None, keyed: bool
) -> list[Any]:
    """Enqueue a batch (a JSON array) and return `position id code field message` for each, in order.

    Strict: the first fault refuses all, its field led by the position. `key` is the whole batch's; `keyed`
    says that this or any email has one. Raises Refused, DatabaseAway and InDoubt.
    """
    values = {**caller.settings(), "emails": emails, "strict": strict, "key": key}
    try:
        return await database.many(queries("emails")["send_many"], values)
    except DatabaseAway as error:
        raise _judged(error, keyed=keyed) from error.__cause__


async def send_group(
    hotline: Hotline, caller: Caller, emails: Sequence[str], *, lock_ms: int, repeatable: bool
) -> list[Stored]:
    """Enqueue emails of several requests (each JSON, as for `send`) in one transaction; answers in order.

    A bad email is refused by itself. `lock_ms` is how long to wait for a lock. `repeatable` says that every
    email has an idempotency key. Raises GroupUndone, DatabaseAway, InDoubt, and Refused for what refuses all,
    which for a single email is its own fault: of one there is no set, and `send` stores it in half the time.

    Never silently twice: once the statement was handed to a connection that then breaks, it may have been
    committed with only the answer lost. It is sent a second time, once, only if `repeatable`, since SQL then
    knows what it has. Otherwise that is InDoubt, and whoever sent the email decides.
    """
    values = {**caller.settings(), "lock_timeout": f"{lock_ms}ms"}
    if len(emails) == 1:
        statement, values["email"] = _statement("send"), emails[0]
    else:
        statement, values["emails"] = _statement("send_group"), f"[{','.join(emails)}]"
    while True:
        try:
            return [Stored(*row) for row in await hotline.rows(statement, values)]
        except DatabaseAway as error:
            if (locked := _said_no(error)) is not None:
                raise GroupUndone(str(error), locked=locked) from error
            if not repeatable or not _lost(error):
                raise _judged(error, keyed=False) from error.__cause__
        except psycopg.Error as error:
            if error.sqlstate is None:  # not the server's words: who knows how far it came
                raise
            raise GroupUndone(str(error), locked=False) from error
        repeatable = False


@functools.cache
def _statement(name: str) -> Statement:
    return Statement(queries("emails")[name])


async def recipients(connection: Connection, id: UUID) -> list[Any]:
    """Return where each recipient of an email, or the one recipient, stands. Refused `not_found` (404)."""
    return await fetch_many(connection, queries("emails")["recipients"], {"id": id})


async def message(connection: Connection, id: UUID) -> Any | None:
    """Return an email as it was handed over, `content` as stored (JSON); None if it is not the tenant's."""
    return await fetch_one(connection, queries("emails")["message"], {"id": id})


async def events(connection: Connection, id: UUID) -> list[Any]:
    """Return the journey of an email or a recipient, oldest first. Refused `not_found` (404)."""
    return await fetch_many(connection, queries("emails")["events"], {"id": id})


async def listing(
    connection: Connection,
    filter: Filter,
    page: Page,
    streams: Sequence[str] | None = None,
    *,
    only_tests: bool = False,
) -> Listed:
    """Return a page of emails, newest first. `streams`: of these only; `only_tests`: of those that are tests.

    It looks for a tenth of a second, so a page may be short, or empty, and there are more all the same.
    """
    tag_name, tag_value = filter.tag or (None, None)
    below = [bound for bound in (filter.below, page.after) if bound is not None]
    above = [bound for bound in (filter.above, page.before) if bound is not None]
    values = {
        "limit": page.limit,
        "newer": page.before is not None,
        "start": filter.start,
        "state": filter.state,
        "tag_name": tag_name,
        "tag_value": tag_value,
        "stream": filter.stream,
        "streams": None if streams is None else list(streams),
        "only_tests": only_tests,
        "recipient": filter.recipient,
        "below": min(below, default=None),
        "above": max(above, default=None),
    }
    found: Any = await fetch_one(connection, queries("emails")["find"], values)
    rows = await fetch_many(connection, queries("emails")["list"], {"ids": found.ids}) if found.ids else []
    return Listed(rows, found.more, found.place)


async def cancel(connection: Connection, id: UUID, reason: str | None = None) -> dict[str, Any]:
    """Cancel an email or one recipient: `{"status", "cancelled", "too_late"}`. Refused `not_found` (404)."""
    row: Any = await fetch_one(connection, queries("emails")["cancel"], {"id": id, "reason": reason})
    return dict(row.answer)


async def reschedule(connection: Connection, id: UUID, at: datetime) -> dict[str, Any]:
    """Move an email or one recipient: `{"status", "rescheduled", "too_late"}`.

    Refused: `not_found` (404), `time_in_past`, `time_too_far`.
    """
    row: Any = await fetch_one(connection, queries("emails")["reschedule"], {"id": id, "at": at})
    return dict(row.answer)


async def hold(connection: Connection, id: UUID, reason: str | None = None) -> dict[str, Any]:
    """Stop an email or one recipient: `{"status", "held", "too_late"}`. Refused `not_found` (404)."""
    row: Any = await fetch_one(connection, queries("emails")["hold"], {"id": id, "reason": reason})
    return dict(row.answer)


async def release(connection: Connection, id: UUID, reason: str | None = None) -> dict[str, Any]:
    """Let what is held go again: `{"status", "released", "busy", "not_held", "in_doubt"}`.

    `busy` are still held: another transaction that has not ended yet holds them; ask again.

    Refused: `not_found` (404), `in_doubt` (409) where it may have been sent already.
    """
    row: Any = await fetch_one(connection, queries("emails")["release"], {"id": id, "reason": reason})
    return dict(row.answer)


async def dead_letters(
    connection: Connection, filter: DeadFilter, page: Page, streams: Sequence[str] | None = None
) -> tuple[list[Any], bool]:
    """Return a page of dead letters, newest email first, and whether there are more that way.

    `streams`: of these only.
    """
    values = page.bounds() | {"filter": _dead_filter(filter, streams)}
    rows = await fetch_many(connection, queries("emails")["dead_letters"], values)
    if page.before is not None:
        rows.reverse()
    return page.cut(rows)


async def dead_ids(
    connection: Connection,
    wanted: Sequence[UUID] | DeadFilter,
    *,
    limit: int = MAX_ACTS,
    streams: Sequence[str] | None = None,
    below: UUID | None = None,
) -> tuple[list[UUID], bool]:
    """Return recipients that are dead letters, oldest first, and whether there are more than `limit`.

    `wanted` are ids, of recipients or emails, or a filter, by which only those `below` an id are found; `streams`: of
    these only.
    """
    values: dict[str, object] = {"limit": limit + 1}
    if isinstance(wanted, DeadFilter):
        query, values = (
            queries("emails")["dead_letters_by_filter"],
            {**values, "filter": _dead_filter(wanted, streams), "below": below},
        )
    else:
        query, values = (
            queries("emails")["dead_letters_by_ids"],
            {**values, "ids": list(wanted), "streams": streams},
        )
    found = [row.recipient_id for row in await fetch_many(connection, query, values)]
    return found[:limit], len(found) > limit


def _dead_filter(filter: DeadFilter, streams: Sequence[str] | None = None) -> Jsonb:
    given = msgspec.to_builtins(filter) | {"streams": streams}
    return Jsonb({key: value for key, value in given.items() if value is not None})


async def retry(connection: Connection, ids: Sequence[UUID], why: str | None) -> int:
    """Put dead letters back into the queue; how many went."""
    row: Any = await fetch_one(connection, queries("emails")["retry"], {"ids": list(ids), "why": why})
    return int(row.done)


async def discard(connection: Connection, ids: Sequence[UUID], why: str | None) -> int:
    """Give dead letters up, which ends them as cancelled; how many there were."""
    row: Any = await fetch_one(connection, queries("emails")["discard"], {"ids": list(ids), "why": why})
    return int(row.done)


def is_away(error: Exception) -> bool:
    """Tell whether the database is away for everyone, not only for the transaction that it just undid."""
    return isinstance(error, DatabaseAway) and _said_no(error) is None


def _said_no(error: DatabaseAway) -> bool | None:
    """Whether the server is there and only undid this transaction (None: it did not); True if for a lock."""
    cause = error.__cause__
    if isinstance(error, Busy):
        return isinstance(cause, errors.LockNotAvailable)
    return False if isinstance(cause, errors.SerializationFailure | errors.DeadlockDetected) else None


def _lost(error: DatabaseAway) -> bool:
    """Whether a connection broke under a statement; for want of a connection no statement began."""
    cause = error.__cause__
    if isinstance(cause, PoolTimeout | PoolClosed) or not isinstance(cause, psycopg.OperationalError):
        return False
    # Class 08 is a pooler's word, whose server broke under the statement; or none was to be had, which it says alike.
    return (
        cause.sqlstate is None or cause.sqlstate.startswith("08") or isinstance(cause, errors.AdminShutdown)
    )


def _judged(error: DatabaseAway, *, keyed: bool) -> Refused | DatabaseAway:
    """Return what a statement that stores email came to when it got no answer."""
    if isinstance(error, Busy) and isinstance(error.__cause__, errors.LockNotAvailable):
        if keyed:
            because = "another request with this key is under way; ask again with the same key"
            return Refused("idempotency_in_flight", "/idempotency_key", because, 409)
        return DatabaseAway("a lock was not to be had within three seconds")
    return InDoubt(str(error)) if _lost(error) else error
