"""The feed in the database: what is new between two snapshots, in one order (sql/functions/066_feed.sql).

Every call is one short statement on a connection of its own, and reads only. What can go wrong: the indexes of the
feed are not whole yet (`Now.whole`): a step would read whole tables.
"""

from __future__ import annotations

from collections.abc import Iterable
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


async def page(
    database: Database, cursor: Cursor, *, now: Snapshot, tenants: Iterable[int] | None, most: int
) -> tuple[list[Any], Position | None]:
    """Return what is new after a cursor, of these tenants (None: all), and up to where it looked; None: to the end.

    Looks at `most` events of all tenants, so there may be none, and more later.
    """
    values = {
        "seen": str(cursor.seen),
        "now": str(now),
        "xid": None if (position := cursor.position) is None else position.xid,
        "place": None if position is None else position.place,
        "id": None if position is None else position.id,
        "tenants": None if tenants is None else list(tenants),
        "most": most,
    }
    rows = await database.many(_Q["page"], values)
    last = rows.pop() if rows and rows[-1].type is None else None
    # A dump of another cluster brings transaction numbers that this one comes to later. What a transaction wrote that
    # began after the snapshot is no older than it; by the id, which says when it was written.
    oldest = ids.floor(datetime.fromtimestamp(max(cursor.made - FOREIGN_SECONDS, 0), UTC))
    rows = [row for row in rows if row.xid < cursor.seen.xmax or (row.place or row.id) >= oldest]
    return rows, None if last is None else Position(last.xid, last.place, last.id)


async def live_keys(database: Database, keys: Iterable[tuple[int, UUID]]) -> set[UUID]:
    """Return those of these keys (tenant, id) that are still valid."""
    asked = list(keys)
    values = {"tenants": [tenant for tenant, _ in asked], "ids": [key for _, key in asked]}
    return {row.id for row in await database.many(_Q["live_keys"], values)}
