"""Email in the database as the HTTP API needs it: enqueue, look up, list, change.

`send` and `send_many` are one statement and one transaction each; everything else runs on a connection lent
by `tenant.acting_as`. Rows come back by attribute, named as in sql/queries/emails.sql.

What can go wrong besides what the law refuses: another transaction holds the same idempotency key and does
not finish in three seconds (`idempotency_in_flight`, 409), and a lock that is not to be had for another
reason, which is as good as a database away.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from psycopg import AsyncConnection, errors
from psycopg.rows import namedtuple_row

from pgmail.domain.states import IN_QUEUE, State
from pgmail.errors import DatabaseAway, Refused
from pgmail.sqlfiles import queries
from pgmail.store.database import Database, fetch_many, fetch_one
from pgmail.store.faults import Busy
from pgmail.store.keys import Caller

Connection = AsyncConnection[Any]
MAX_ACTS = 1_000  # dead letters that one call retries or discards


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
        """The table to start from: the one that leaves the fewest emails to look at."""
        if self.recipient is not None:
            return "recipient"
        if self.state is State.DEAD:
            return "dead"
        if self.state in IN_QUEUE:
            return "queue"
        if self.tag is not None:
            return "tag"
        # Most mail was sent, so the newest emails have it; the other ends are rare.
        return "time" if self.state in {None, State.SENT} else "outcome"


class DeadFilter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which dead letters; None is any. `died_after` is included, `died_before` is not."""

    stream: str | None = None
    site: str | None = None
    reason: str | None = None
    died_after: datetime | None = None
    died_before: datetime | None = None


async def send(database: Database, caller: Caller, email: str, *, keyed: bool) -> UUID:
    """Enqueue one email (JSON, as `domain.email.prepare` leaves it) and return its id.

    `keyed` says that it has an idempotency key. Raises Refused and DatabaseAway.
    """
    try:
        row: Any = await database.one(queries("emails")["send"], {**caller.settings(), "email": email})
    except Busy as error:
        if isinstance(error.__cause__, errors.LockNotAvailable):
            raise _locked(keyed=keyed) from error
        raise
    return UUID(str(row.id))


async def send_many(
    database: Database, caller: Caller, emails: str, *, strict: bool, key: str | None, keyed: bool
) -> list[Any]:
    """Enqueue a batch (a JSON array) and return `position id code field message` for each, in order.

    Strict: the first fault refuses all, its field led by the position. `key` is the whole batch's; `keyed`
    says that this or any email has one. Raises Refused and DatabaseAway.
    """
    values = {**caller.settings(), "emails": emails, "strict": strict, "key": key}
    try:
        return await database.many(queries("emails")["send_many"], values)
    except Busy as error:
        if isinstance(error.__cause__, errors.LockNotAvailable):
            raise _locked(keyed=keyed) from error
        raise


async def recipients(connection: Connection, id: UUID) -> list[Any]:
    """Return where each recipient of an email, or the one recipient, stands. Refused `not_found` (404)."""
    return await fetch_many(connection, queries("emails")["recipients"], {"id": id})


async def message(connection: Connection, id: UUID) -> Any | None:
    """Return an email as it was handed over; None if it is not the tenant's."""
    return await fetch_one(connection, queries("emails")["message"], {"id": id})


async def events(connection: Connection, id: UUID) -> list[Any]:
    """Return the journey of an email or a recipient, oldest first. Refused `not_found` (404)."""
    return await fetch_many(connection, queries("emails")["events"], {"id": id})


async def listing(connection: Connection, filter: Filter, page: Page) -> tuple[list[Any], bool]:
    """Return a page of emails, newest first, and whether there are more that way."""
    tag_name, tag_value = filter.tag or (None, None)
    below = [bound for bound in (filter.below, page.after) if bound is not None]
    above = [bound for bound in (filter.above, page.before) if bound is not None]
    values = page.bounds() | {
        "start": filter.start,
        "state": filter.state,
        "tag_name": tag_name,
        "tag_value": tag_value,
        "stream": filter.stream,
        "recipient": filter.recipient,
        "below": min(below, default=None),
        "above": max(above, default=None),
    }
    async with connection.cursor(row_factory=namedtuple_row) as cursor:
        # A prepared statement would come to a plan that fits no filter; see the query.
        await cursor.execute(queries("emails")["list"].text.encode(), values, prepare=False)
        return page.cut(await cursor.fetchall())


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


async def queue(connection: Connection) -> list[Any]:
    """Return what waits by stream, priority and site, in numbers of recipients, and since when."""
    return await fetch_many(connection, queries("emails")["queue"])


async def dead_letters(connection: Connection, filter: DeadFilter, page: Page) -> tuple[list[Any], bool]:
    """Return a page of dead letters, newest email first, and whether there are more that way."""
    values = page.bounds() | {
        "stream": filter.stream,
        "site": filter.site,
        "reason": filter.reason,
    }
    rows = await fetch_many(connection, queries("emails")["dead_letters"], values)
    if page.before is not None:
        rows.reverse()
    return page.cut(rows)


async def dead_ids(
    connection: Connection, wanted: Sequence[UUID] | DeadFilter, *, limit: int = MAX_ACTS
) -> tuple[list[UUID], bool]:
    """Return recipients that are dead letters, oldest first, and whether there are more than `limit`.

    `wanted` are ids, of recipients or emails, or a filter.
    """
    values: dict[str, object] = {"limit": limit + 1}
    if isinstance(wanted, DeadFilter):
        query, values = queries("emails")["dead_letters_by_filter"], values | msgspec.structs.asdict(wanted)
    else:
        query, values = queries("emails")["dead_letters_by_ids"], {**values, "ids": list(wanted)}
    found = [row.recipient_id for row in await fetch_many(connection, query, values)]
    return found[:limit], len(found) > limit


async def retry(connection: Connection, ids: Sequence[UUID], why: str | None) -> int:
    """Put dead letters back into the queue; how many went."""
    row: Any = await fetch_one(connection, queries("emails")["retry"], {"ids": list(ids), "why": why})
    return int(row.done)


async def discard(connection: Connection, ids: Sequence[UUID], why: str | None) -> int:
    """Give dead letters up, which ends them as cancelled; how many there were."""
    row: Any = await fetch_one(connection, queries("emails")["discard"], {"ids": list(ids), "why": why})
    return int(row.done)


def _locked(*, keyed: bool) -> Refused | DatabaseAway:
    if keyed:
        because = "another request with this key is under way; ask again with the same key"
        return Refused("idempotency_in_flight", "/idempotency_key", because, 409)
    return DatabaseAway("a lock was not to be had within three seconds")
