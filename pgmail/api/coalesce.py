"""Concurrent single sends of one caller, gathered into set-based statements: a group commit.

Nobody is made to wait for company. The first email goes at once; those that come while its statement is under
way are the next group. So a lone client pays nothing, and the busier it gets, the larger the groups and the
less each email costs. Every answer is given after the commit of its email.

What can go wrong, and whose trouble it is:
- A bad email is refused by itself, inside the group.
- An idempotency key is held by another transaction. A group waits for locks 50 ms only; then its emails
  without a key go as a group, and each key by itself, with the patience that it would have had alone. A key
  known to be held goes by itself from the start.
- The server undoes a group for another reason (a deadlock, a body that nobody foresaw): each goes by itself.
- The database is away: everyone is told (503). What is sent a second time, and what never, is the rule of
  `store.emails.send_group`.
- A client hangs up. Its email was handed over and is sent; the others do not notice.
- A statement hangs. Who waited five seconds to be part of one is told 503; none of it was sent.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from typing import Any

from pgmail.api.problems import status_of
from pgmail.errors import DatabaseAway, Refused
from pgmail.metrics.counts import GROUPS, Histogram, Sample
from pgmail.store import emails as store
from pgmail.store.database import Database
from pgmail.store.hotline import Hotline
from pgmail.store.keys import Caller

MAX_EMAILS = 200  # in a group
MAX_OCTETS = 1_048_576  # of JSON in a group
STATEMENTS = 1  # at a time for one caller; a second one makes the groups smaller
HELD_MS = 50  # a group's patience with a lock that somebody else holds
HELD_SECONDS = 10.0  # for so long a key that somebody else was found to hold is not taken into a group
WAIT_SECONDS = 5.0  # longest wait for a place in a statement, as for a connection

Answer = str | Exception
"""An id, or what the waiting request is to raise. A value, since nobody may be left to hear it."""


class _Waiting:
    """One email, and who waits for its answer."""

    __slots__ = ("answer", "email", "key", "since")

    def __init__(self, email: str, key: str | None) -> None:
        loop = asyncio.get_running_loop()
        self.email = email
        self.key = key
        self.since = loop.time()
        self.answer: asyncio.Future[Answer] = loop.create_future()

    def tell(self, answer: Answer) -> None:
        if not self.answer.done():  # else the client has hung up
            self.answer.set_result(answer)


class _Line:
    """What one caller has handed over and not been answered yet.

    `keys` are those of statements under way; with each wait the emails that came with the same key since.
    `held` are keys that another transaction was found to hold, each until when that is believed.
    """

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.waiting: deque[_Waiting] = deque()
        self.keys: dict[str, list[_Waiting]] = {}
        self.held: dict[str, float] = {}
        self.statements = 0
        self.timer: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> bool:
        return not (self.waiting or self.keys or self.statements)

    def take(self) -> list[_Waiting]:
        """Take the next group off the line; empty if there is none.

        An email whose key is under way already waits for that, so that this process never waits for itself.
        """
        group: list[_Waiting] = []
        own: set[str] = set()
        octets = 0
        while self.waiting and len(group) < MAX_EMAILS:
            item = self.waiting[0]
            octets += len(item.email)
            if group and octets > MAX_OCTETS:
                break
            self.waiting.popleft()
            # A key twice in one group is a repetition, which SQL answers as if it had come later.
            if item.key is None or item.key in own:
                group.append(item)
            elif item.key in self.keys:
                self.keys[item.key].append(item)
            else:
                own.add(item.key)
                self.keys[item.key] = []
                group.append(item)
        return group

    def release(self, keys: Iterable[str], answer: Answer | None = None) -> None:
        """End the statement of these keys: who waited for one gets the answer, if given, or is next."""
        for key in keys:
            followers = self.keys.pop(key)
            if answer is None:
                self.waiting.extendleft(reversed(followers))
            else:
                _tell(followers, answer)

    def remember(self, key: str, *, held: bool) -> None:
        """Note whether another transaction holds a key."""
        now = asyncio.get_running_loop().time()
        self.held.pop(key, None)
        for old in [old for old, until in self.held.items() if until <= now]:
            del self.held[old]
        if held:
            self.held[key] = now + HELD_SECONDS


class Coalescer:
    """Sends the emails of concurrent requests together. For one event loop."""

    def __init__(self, sends: Database, database: Database) -> None:
        """`sends` is a pool for groups, which needs no trial of its connections before use.

        `database` is the pool that everything else shares: an email that goes by itself, and may have to wait
        long for its key, takes a connection of that one and keeps no group from its own. Where it is the same,
        groups keep no connection between them.
        """
        self._hotline = Hotline(sends, keep=sends is not database)
        self._database = database
        self._lines: dict[Caller, _Line] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.groups = Histogram(GROUPS)

    def samples(self) -> Iterator[Sample]:
        """How many emails went together."""
        yield Sample("coalesced_emails", (), self.groups)

    async def send(self, caller: Caller, email: str, key: str | None) -> str:
        """Enqueue one email (JSON, as `store.send` takes it) and return its id, once it is committed.

        `key` is the email's idempotency key. Raises Refused, DatabaseAway, and what nobody foresaw. If this is
        cancelled the email is sent all the same.
        """
        line = self._lines.get(caller)
        if line is None:
            line = self._lines[caller] = _Line(caller)
        item = _Waiting(email, key)
        if key is not None and line.held.get(key, 0.0) > item.since and key not in line.keys:
            line.keys[key] = []
            self._spawn(self._alone(line, item))
        else:
            line.waiting.append(item)
            self._start(line)
        answer = await item.answer
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def close(self) -> None:
        """Give kept connections back to their pool."""
        await self._hotline.close()

    async def drain(self, seconds: float) -> bool:
        """Wait until all that was handed over is answered; False if that took longer."""
        end = asyncio.get_running_loop().time() + seconds
        while self._tasks:
            left = end - asyncio.get_running_loop().time()
            await asyncio.wait(self._tasks, timeout=max(0, left))
            if left <= 0:
                return not self._tasks
        return True

    def _start(self, line: _Line) -> None:
        """Begin a statement for who waits, if one may be begun."""
        if line.statements < STATEMENTS and line.waiting:
            line.statements += 1
            self._spawn(self._work(line))
        elif line.waiting and line.timer is None:
            line.timer = asyncio.get_running_loop().call_later(WAIT_SECONDS, self._give_up, line)

    def _end(self, line: _Line) -> None:
        """Go on after a statement, or forget a line with nothing left in it."""
        self._start(line)
        if line.idle and self._lines.get(line.caller) is line:
            del self._lines[line.caller]
            if line.timer is not None:
                line.timer.cancel()

    def _give_up(self, line: _Line) -> None:
        """Tell those who have waited too long that nothing came of it."""
        line.timer = None
        due = asyncio.get_running_loop().time() - WAIT_SECONDS
        while line.waiting and line.waiting[0].since <= due:
            line.waiting.popleft().tell(DatabaseAway("the database did not get round to it in time"))
        self._end(line)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work(self, line: _Line) -> None:
        """Send group after group until nobody waits."""
        try:
            while group := line.take():
                under_way = await self._group(line, group)
                line.release({item.key for item in group if item.key is not None} - under_way)
                if line.waiting:
                    # Who was answered may ask again at once, and is then in the next group.
                    await asyncio.sleep(0)
        finally:
            line.statements -= 1
            self._end(line)

    async def _group(self, line: _Line, group: Sequence[_Waiting]) -> set[str]:
        """Send a group and tell everyone in it. Returns the keys that went by themselves and still go."""
        self.groups.observe(len(group))
        keyed = [item for item in group if item.key is not None]
        try:
            rows = await store.send_group(
                self._hotline,
                line.caller,
                [item.email for item in group],
                lock_ms=HELD_MS if keyed else store.LOCK_MS,
                repeatable=len(keyed) == len(group),
            )
            for item, row in zip(group, rows, strict=True):
                item.tell(_answer(row))
        except store.GroupUndone as undone:
            if undone.locked and keyed:
                return await self._split(line, group)
            if undone.locked:
                _tell(group, DatabaseAway(str(undone)))
            else:
                await self._singly(line, group)
        except Refused as fault:  # all, for one of them
            if len(group) == 1:
                _tell(group, fault)
            else:
                await self._singly(line, group)
        except Exception as error:  # noqa: BLE001 - each request tells it, and logs it if it is ours
            _tell(group, error)
        return set()

    async def _split(self, line: _Line, group: Sequence[_Waiting]) -> set[str]:
        """Send those without a key together, and each key by itself, as somebody else holds one of them."""
        alone: set[str] = set()
        for item in group:
            if item.key in alone:
                line.keys[item.key].append(item)
            elif item.key is not None:
                alone.add(item.key)
                self._spawn(self._alone(line, item))
        if plain := [item for item in group if item.key is None]:
            await self._group(line, plain)
        return alone

    async def _singly(self, line: _Line, group: Sequence[_Waiting]) -> None:
        """Send one after the other. Where the database is away for one, it is for those behind it."""
        for place, item in enumerate(group):
            answer = await self._single(line, item)
            if isinstance(answer, Exception) and store.is_away(answer):
                _tell(group[place:], answer)
                return
            item.tell(answer)

    async def _alone(self, line: _Line, item: _Waiting) -> None:
        """Send an email with a key by itself, and let who waits for that key know what came of it."""
        key = str(item.key)
        answer = await self._single(line, item)
        item.tell(answer)
        held = isinstance(answer, Refused) and answer.code == "idempotency_in_flight"
        line.remember(key, held=held)
        line.release([key], answer if held else None)
        self._end(line)

    async def _single(self, line: _Line, item: _Waiting) -> Answer:
        try:
            return str(await store.send(self._database, line.caller, item.email, keyed=item.key is not None))
        except Exception as error:  # noqa: BLE001 - the request tells it, and logs it if it is ours
            return error


def _answer(row: store.Stored) -> Answer:
    if row.id is not None:
        return row.id
    code = row.code or "refused"
    return Refused(code, row.field or "", row.message or "refused", status_of(code))


def _tell(items: Iterable[_Waiting], answer: Answer) -> None:
    for item in items:
        item.tell(answer)
