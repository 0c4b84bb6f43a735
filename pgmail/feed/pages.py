"""Reading the feed from a cursor on, page by page: for `GET /events`, and for who comes back after a while.

A page is a few short steps, each of which looks at some hundreds of events of all tenants, so that nothing is held
up by how much lies in between; where it found too little in its steps it says that there is more. What can go wrong
is said as Refused: a cursor of another history, or of before what is kept (410), and indexes that are not whole yet
(503). What tells that an email was queued is the email itself, which is kept for a shorter time than the record: who
asks for less than that may begin as early as the record does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NamedTuple, TypeVar

from pgmail.domain.cursor import Cursor, Encoder
from pgmail.errors import Refused
from pgmail.feed.events import Chunk, Filter, Form, Page
from pgmail.feed.listener import GONE, NOT_READY
from pgmail.store import feed
from pgmail.store.database import Database
from pgmail.store.feed import Event, Now

FIRST_STEP, STEP = 125, 1_000  # events of all tenants that one statement looks at, each time twice as many
NARROW = 4  # times as many for who wants some types or one email only: what is passed over costs little
STEPS = 20  # of one page
CATCHING_UP = 2  # statements at once, of all who come back
T = TypeVar("T")
_SLACK = timedelta(hours=1)
_AHEAD = timedelta(minutes=1)  # that another clock may be


class Step(NamedTuple):
    """The wanted events of a step, the cursor whose snapshots they lie between, and the one after them."""

    events: Sequence[Event]
    during: Cursor
    after: Cursor
    complete: bool

    def chunk(self, form: Form) -> Chunk:
        """Return its events as one chunk of a form."""
        return Page(self.events, Encoder(self.during)).chunk(Filter(), form)[0]


class Pages:
    """Pages of one database. Not more than a few statements run at once, however many ask."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._turns = asyncio.Semaphore(CATCHING_UP)
        self._running: set[asyncio.Task[Any]] = set()

    async def now(self) -> Now:
        """Look at the database. Raises Refused `feed_not_ready` (503), and DatabaseAway."""
        found = await self._asked(partial(feed.now, self._database))
        if not found.whole:
            raise not_ready()
        return found

    async def begin(self, at: datetime | None, filter: Filter) -> Cursor:
        """Return the cursor of now, or of a moment.

        Raises Refused: `since_too_old` (410) for one of before what is kept, `invalid_parameter` for one to come.
        """
        now = await self.now()
        if at is None:
            return now.cursor()
        if at > now.at + _AHEAD:
            raise Refused(
                "invalid_parameter", "/since", f"is in the future; it is {now.at:%Y-%m-%dT%H:%M:%SZ}"
            )
        _need_kept(now, at, filter, "since_too_old", "/since")
        seen = await self._asked(partial(feed.since, self._database, at))
        return Cursor(now.history, seen, int(at.timestamp()), since=int(at.timestamp() * 1000))

    async def check(self, cursor: Cursor, filter: Filter) -> Now:
        """Return what there is now, if the cursor still means something in it.

        Raises Refused (410): `cursor_gone` in another database, after a restore or a failover, `cursor_too_old`.
        """
        now = await self.now()
        last = cursor.now or cursor.seen
        ahead = cursor.made_at > now.at + timedelta(
            seconds=feed.FOREIGN_SECONDS
        )  # it would pass over all that comes
        if cursor.history != now.history or last.xmax > now.snapshot.xmax or ahead:
            raise gone(cursor)
        _need_kept(now, cursor.made_at, filter, "cursor_too_old", "/cursor")
        return now

    async def page(
        self, cursor: Cursor, filter: Filter, tenant: int, limit: int
    ) -> tuple[list[Event], Cursor, bool]:
        """Return at most `limit` events after a cursor, the cursor after them, and whether there is more.

        Raises as `check`.
        """
        now = await self.check(cursor, filter)
        found: list[Event] = []
        async for step in self.steps(cursor, now.cursor(), filter, tenant):
            room = limit - len(found)
            found += step.events[:room]
            if len(step.events) > room:
                return found, step.during._replace(position=found[-1].position), True
            cursor = step.after
            if step.complete:
                return found, cursor, False
            if len(found) == limit:
                break
        return found, cursor, True

    async def steps(
        self, cursor: Cursor, end: Cursor, filter: Filter, tenant: int, steps: int = STEPS
    ) -> AsyncIterator[Step]:
        """Go from a cursor towards one that has seen all of a later snapshot, so many steps at most."""
        for step in range(steps):
            until = cursor.now or end.seen
            during = cursor._replace(now=until)
            most = min(STEP, FIRST_STEP << step) * (
                1 if filter.types is None and filter.email is None else NARROW
            )
            found, reached = await self._asked(
                partial(feed.page, self._database, cursor, now=until, wanted=filter.asks(tenant), most=most)
            )
            events = Page(found, Encoder(during)).wanted(filter)
            # What `until` shows is told. If that is of the end, all is; if it came with the cursor, there may be more.
            complete = reached is None and until == end.seen
            if reached is not None:
                cursor = during._replace(position=reached)
            elif complete:
                cursor = end
            else:
                cursor = Cursor(cursor.history, until, cursor.made, since=cursor.since)
            yield Step(events, during, cursor, complete)
            if complete:
                return

    async def _asked(self, ask: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a statement when it is its turn, and to its end even if who asked hangs up: it is short.

        One that is cancelled costs the pool its connection.
        """
        await self._turns.acquire()
        task = asyncio.create_task(ask())
        self._running.add(task)
        task.add_done_callback(self._over)
        return await asyncio.shield(task)

    def _over(self, task: asyncio.Task[Any]) -> None:
        self._turns.release()
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # who asked may be gone, and nobody else wants to know


def _need_kept(now: Now, at: datetime, filter: Filter, code: str, field: str) -> None:
    days, what = now.kept_days, "events are kept"
    if filter.needs_emails and now.email_days is not None:
        days, what = (
            now.email_days,
            "emails, which tell that they were queued and of their streams and tags, are kept",
        )
    if days is not None and at < now.at - timedelta(days=days) - _SLACK:
        because = f"{what} for {days} days, and it is from {at:%Y-%m-%d}; begin anew, with since if need be"
        if filter.needs_emails and days != now.kept_days:
            because += ", or ask for types of events other than email.queued and email.scheduled alone"
        raise Refused(code, field, because, 410)


def not_ready() -> Refused:
    """Return what is said while the indexes of the feed are not whole."""
    refused = Refused(NOT_READY.reason, "", NOT_READY.message, 503)
    refused.retry_after = 60
    return refused


def gone(cursor: Cursor) -> Refused:
    """Return what is said of a cursor that means nothing here."""
    because = f"{GONE.message}. It was made at {cursor.made_at:%Y-%m-%dT%H:%M:%SZ}"
    return Refused(GONE.reason, "/cursor", because, 410)
