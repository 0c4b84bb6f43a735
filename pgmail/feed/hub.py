"""The one reader of a process, and all who listen to it.

While anybody listens, it asks the database every 50 to 120 ms what it shows now, reads what is new since the last
time, of the tenants that listen what any of theirs wants, and puts it to each of them; so a thousand listeners cost
one reader, and what nobody wants costs a fifth of what is told. Nobody listens: it asks nothing. The more there is to
read, the longer the pauses: a few large reads cost less than many small ones.

Who comes is let in between two reads, at a snapshot that is newer than its request; who comes back with a cursor is
told by itself (`pages`) what it missed up to there. So nobody misses an event and nobody is told one twice.

What can go wrong: the database is away. Listeners stay, and are told all once it is back. It was restored, or is
another one, or a standby took over: all are sent away, since nobody knows what they were told of what is lost, or
what hides behind transaction numbers that were given out twice. A key ends: its listeners are sent away within about
a second.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, defaultdict
from collections.abc import AsyncIterator

import structlog

from pgmail.clock import Clock, SystemClock
from pgmail.domain.cursor import Cursor, Encoder
from pgmail.errors import DatabaseAway, Refused
from pgmail.feed.events import Chunk, Filter, Form, Page, asked
from pgmail.feed.listener import (
    CLOSING,
    CROWDED,
    GONE,
    KEY_ENDED,
    NOT_READY,
    Dropped,
    Listener,
)
from pgmail.feed.pages import Pages
from pgmail.store import feed
from pgmail.store.database import Database
from pgmail.store.feed import Event, Wanted
from pgmail.store.keys import Caller

log = structlog.get_logger()

LEAST_PAUSE, MOST_PAUSE = 0.05, 0.12  # seconds between two looks at the database
SHARE = 20  # a pause is so many times as long as the read before it, within these
AWAY_SECONDS = 0.5
KEYS_SECONDS = 0.7
STEP = 2_000  # events that one statement looks at
FULL_SECONDS = 5.0  # after which who was refused for want of room may ask again


class Hub:
    """Live events of one process. `pages` reads by itself; `listen` lets somebody in."""

    def __init__(self, database: Database, *, most: int = 2_000, clock: Clock | None = None) -> None:
        """`most`: listeners at once."""
        self.pages = Pages(database)
        self._database = database
        self._most = most
        self._clock = clock or SystemClock()
        self._all: set[Listener] = set()
        self._live: dict[int, set[Listener]] = {}
        self._asked: dict[int, list[Wanted]] = {}  # what those of a tenant want, until one comes or goes
        self._joining: list[tuple[Listener, asyncio.Future[Cursor | None]]] = []
        self._cursor: Cursor | None = None  # all that it shows is told to those who are live
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self._keys_at = 0.0

    @property
    def listeners(self) -> int:
        """How many listen."""
        return len(self._all)

    def enter(self, caller: Caller, filter: Filter, form: Form) -> Listener:
        """Take a place for somebody who will listen; give it back with `leave`. Refused `too_many_listeners` (503).

        Where all are taken, a tenant that holds more of them than the caller's gives one up.
        """
        places = Counter(each.tenant_id for each in self._all if each.dropped is None)
        if self._closing or (places.total() >= self._most and not self._made_room(places, caller.tenant_id)):
            because = "this server is shutting down" if self._closing else f"{self._most} listen here already"
            refused = Refused("too_many_listeners", "", f"{because}; ask again", 503)
            refused.retry_after = FULL_SECONDS
            raise refused
        listener = Listener(caller, filter, form)
        self._all.add(listener)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="feed")
        self._wanted.set()
        return listener

    def _made_room(self, places: Counter[int], tenant: int) -> bool:
        """Send the newest listener of the tenant with the most places away, for one that has fewer."""
        ((crowd, taken),) = places.most_common(1)
        # Who was sent away stays until its connection ends, and needs memory meanwhile.
        if taken <= places[tenant] + 1 or len(self._all) >= 2 * self._most:
            return False
        others = [each for each in self._all if each.tenant_id == crowd and each.dropped is None]
        max(others, key=lambda each: each.number).drop(CROWDED)
        return True

    def leave(self, listener: Listener) -> None:
        """Give a place back. Twice is fine."""
        self._all.discard(listener)
        if (others := self._live.get(listener.tenant_id)) is not None:
            others.discard(listener)
            self._asked.pop(listener.tenant_id, None)
            if not others:
                del self._live[listener.tenant_id]

    async def chunks(
        self, listener: Listener, cursor: Cursor | None, beat: float
    ) -> AsyncIterator[Chunk | Cursor]:
        """Yield all that happens from a cursor on, or from now on; ends when the listener was dropped.

        A cursor comes first once it listens, and again where nothing happened for `beat` seconds: up to there all was
        told. Raises Refused as `Pages.check`, before it yields anything; and DatabaseAway.
        """
        if cursor is not None:
            async for item in self._missed(listener, cursor):
                if isinstance(item, Cursor):
                    cursor = item
                else:
                    yield item
        if listener.dropped is not None:
            return
        start = await self._joined(listener)
        if start is None:
            return
        if cursor is None:
            yield start
        else:
            whole = False
            async for item in self._between(listener, cursor, start):
                whole = isinstance(item, Cursor)
                yield item
            if not whole:
                return  # what waits comes after what it was not told: it is told both when it comes back
        while listener.dropped is None:
            found = await listener.take(beat)
            for chunk in found:
                yield chunk
            if not found and listener.dropped is None and (here := self._cursor) is not None:
                yield here
        for chunk in await listener.take(0):
            yield chunk

    async def close(self) -> None:
        """Send everybody away, and let nobody in any more."""
        self._closing = True
        self._drop_all(CLOSING)
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._drop_all(CLOSING)  # who came in between

    async def _missed(self, listener: Listener, cursor: Cursor) -> AsyncIterator[Chunk | Cursor]:
        """Tell what happened since a cursor, until little is left; then the cursor up to which all was told."""
        now = await self.pages.check(cursor, listener.filter)
        while listener.dropped is None:
            steps = 0
            async for step in self.pages.steps(cursor, now.cursor(), listener.filter, listener.tenant_id):
                cursor, steps = step.after, steps + 1
                if step.events:
                    yield step.chunk(listener.form)
                if listener.dropped is not None:
                    return
                if step.complete:
                    break
            else:
                continue
            if steps == 1:
                break
            now = await self.pages.now()
        yield cursor

    async def _between(
        self, listener: Listener, cursor: Cursor, start: Cursor
    ) -> AsyncIterator[Chunk | Cursor]:
        """Tell what is between the end of what was missed and the snapshot at which it was let in; then the latter."""
        if start.history != cursor.history or start.seen.xmax < cursor.seen.xmax:
            listener.drop(GONE)  # it changed since the cursor was looked at
        while listener.dropped is None:
            async for step in self.pages.steps(cursor, start, listener.filter, listener.tenant_id):
                cursor = step.after
                if step.events:
                    yield step.chunk(listener.form)
                if listener.dropped is not None:
                    return
                if step.complete:
                    yield start
                    return

    async def _joined(self, listener: Listener) -> Cursor | None:
        """Wait until the reader has let it in, and return from where on it is told; None: it was dropped before."""
        told: asyncio.Future[Cursor | None] = asyncio.get_running_loop().create_future()
        self._joining.append((listener, told))
        self._wanted.set()
        return await told

    async def _run(self) -> None:
        """Read while anybody listens."""
        while True:
            if not self._all:
                self._cursor = None
                self._wanted.clear()
                await self._wanted.wait()
            began = self._clock.monotonic()
            pause = LEAST_PAUSE
            try:
                await self._look()
                await self._check_keys()
                pause = min(max(SHARE * (self._clock.monotonic() - began), LEAST_PAUSE), MOST_PAUSE)
            except DatabaseAway:
                pause = AWAY_SECONDS
            except Exception:
                # A fault of ours must not end all streams in silence for good.
                log.exception("feed.failed")
                pause = AWAY_SECONDS
            await self._clock.sleep(pause)

    async def _look(self) -> None:
        """Tell what is new, then let in who came before this look began."""
        joining, self._joining = self._joining, []
        try:
            await self._tell()
        except BaseException:
            self._joining = joining + self._joining
            raise
        for listener, told in joining:
            if told.done():
                continue
            if listener in self._all and listener.dropped is None:
                self._live.setdefault(listener.tenant_id, set()).add(listener)
                self._asked.pop(listener.tenant_id, None)
                told.set_result(self._cursor)
            else:
                told.set_result(None)

    async def _tell(self) -> None:
        now = await feed.now(self._database)
        before = self._cursor
        if not now.whole:
            self._drop_all(NOT_READY)
        elif before is None:
            self._cursor = now.cursor()
        elif now.history != before.history or now.snapshot.xmax < before.seen.xmax:
            log.warning("feed.history_changed", listeners=len(self._all))
            self._drop_all(GONE)
            self._cursor = now.cursor()
        elif before.now is not None or now.snapshot != before.seen:
            await self._read(before, now)

    async def _read(self, cursor: Cursor, now: feed.Now) -> None:
        """Tell the listeners what is new, in steps. Cut off by an error it goes on where it was."""
        while True:
            if not self._live:
                self._cursor = now.cursor()
                return
            until = cursor.now or now.snapshot
            during = cursor._replace(now=until)
            events, reached = await feed.page(
                self._database, cursor, now=until, wanted=self._wishes(), most=STEP
            )
            # From here on nothing waits: the cursor is of what was put, whenever anybody looks.
            self._put(events, Encoder(during))
            if reached is not None:
                cursor = during._replace(position=reached)
            elif until == now.snapshot:
                self._cursor = now.cursor()
                return
            else:
                cursor = Cursor(cursor.history, until, cursor.made)
            self._cursor = cursor
            await asyncio.sleep(0)

    def _wishes(self) -> list[Wanted]:
        """Return what those who are live want, in all. Nobody is let in while this is read."""
        for tenant, listeners in self._live.items():
            if tenant not in self._asked:
                self._asked[tenant] = asked(tenant, {listener.filter for listener in listeners})
        return [wish for tenant in self._live for wish in self._asked[tenant]]

    def _put(self, events: list[Event], cursors: Encoder) -> None:
        by_tenant: dict[int, list[Event]] = defaultdict(list)
        for event in events:
            by_tenant[event.tenant_id].append(event)
        for tenant, theirs in by_tenant.items():
            page = Page(theirs, cursors)
            chunks: dict[tuple[Filter, Form], tuple[Chunk, int]] = {}
            for listener in self._live.get(tenant, ()):
                group = listener.group
                found = chunks.get(group)
                if found is None:
                    found = chunks[group] = page.chunk(*group)
                chunk, size = found
                if size:
                    listener.put(chunk, size)

    async def _check_keys(self) -> None:
        """Send away whose key has ended: one question for all."""
        if self._clock.monotonic() < self._keys_at:
            return
        self._keys_at = self._clock.monotonic() + KEYS_SECONDS
        keys = {(listener.tenant_id, listener.key_id) for listener in self._all}
        alive = await feed.live_keys(self._database, keys)
        over = {key for _, key in keys} - alive
        for listener in [each for each in self._all if each.key_id in over]:  # not who came in meanwhile
            listener.drop(KEY_ENDED)

    def _drop_all(self, why: Dropped) -> None:
        for listener in list(self._all):
            listener.drop(why)
        for _, told in self._joining:
            if not told.done():
                told.set_result(None)
        self._joining.clear()
