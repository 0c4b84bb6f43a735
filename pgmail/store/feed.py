"""The feed in the database: what is new between two snapshots, in one order (sql/functions/066_feed.sql).

Every call is one short statement on a connection of its own, and reads only. What can go wrong: the indexes of the
feed are not whole yet (`Now.whole`): a step would read whole tables.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

from pgmail.domain import ids
from pgmail.domain.cursor import HISTORY_BYTES, Cursor, Position, Snapshot
from pgmail.sqlfiles import queries
from pgmail.store.database import Database

FOREIGN_SECONDS = 86_400  # older than a cursor's snapshot, with room for clocks that are wrong

_Q = queries("feed")


class Now(NamedTuple):
    """What the database shows now: which one it is, its snapshot and time, and whether the indexes are whole.

    Events are kept for `kept_days`, and emails, which tell that they were queued, for `email_days`; None: for ever.
    """

    history: bytes
    snapshot: Snapshot
    at: datetime
    kept_days: int | None
    email_days: int | None
    whole: bool

    def cursor(self) -> Cursor:
        """Return the cursor of who has seen all of it."""
        return Cursor(self.history, self.snapshot, int(self.at.timestamp()))


async def now(database: Database) -> Now:
    """Look at the database. DatabaseAway."""
    row: Any = await database.one(_Q["now"])
    return Now(
        row.history.bytes[:HISTORY_BYTES],
        Snapshot.parse(row.now),
        row.at,
        row.kept_days,
        row.email_days,
        bool(row.whole),
    )


async def since(database: Database, at: datetime) -> Snapshot:
    """Return a snapshot of some minutes before `at`: what happened then or later is new to it."""
    row: Any = await database.one(_Q["since"], {"at": at})
    return Snapshot.parse(row.seen)


class Event(NamedTuple):
    """One event as the database tells it: where it stands in the feed, and the object (JSON) that users are shown.

    `place` and `id` are the octets of UUIDs. Not more is made of an event than this, of which there are thousands a
    second.
    """

    xid: int
    place: bytes | None
    id: bytes
    tenant_id: int
    type: str
    json: bytes

    @property
    def position(self) -> Position:
        """Where it stands."""
        return Position(self.xid, None if self.place is None else UUID(bytes=self.place), UUID(bytes=self.id))


class Wanted(NamedTuple):
    """What a reader wants of a tenant: all, events of a type, or of an email (its id or a recipient's)."""

    tenant_id: int
    type: str | None = None
    email: UUID | None = None


async def page(
    database: Database, cursor: Cursor, *, now: Snapshot, wanted: Collection[Wanted], most: int
) -> tuple[list[Event], Position | None]:
    """Return what is new after a cursor, of what is wanted, and up to where it looked; None: to the end.

    Looks at `most` events of all tenants, so there may be none, and more later. May tell more of a wanted tenant than
    was asked for: of an email all recipients.
    """
    narrow = any(each.type or each.email for each in wanted)
    values = {
        "seen": str(cursor.seen),
        "now": str(now),
        "xid": None if (position := cursor.position) is None else position.xid,
        "place": None if position is None else position.place,
        "id": None if position is None else position.id,
        "tenants": [each.tenant_id for each in wanted],
        "types": [each.type for each in wanted] if narrow else None,
        "emails": [each.email for each in wanted] if any(each.email for each in wanted) else None,
        "most": most,
        "since": None if cursor.since is None else datetime.fromtimestamp(cursor.since / 1000, UTC),
        "oldest": ids.floor(datetime.fromtimestamp(max(cursor.made - FOREIGN_SECONDS, 0), UTC)),
    }
    rows = list(map(Event._make, await database.tuples(_Q["page"], values)))
    if rows and not rows[-1].type:
        return rows, rows.pop().position
    return rows, None


async def live_keys(database: Database, keys: Iterable[tuple[int, UUID]]) -> set[UUID]:
    """Return those of these keys (tenant, id) that are still valid."""
    asked = list(keys)
    values = {"tenants": [tenant for tenant, _ in asked], "ids": [key for _, key in asked]}
    return {row.id for row in await database.many(_Q["live_keys"], values)}
