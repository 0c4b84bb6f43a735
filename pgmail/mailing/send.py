"""The second pass over a list: each chunk of rows is one email, one transaction and one idempotency key.

The key is made from the mailing and from the chunk as it stands in the file, not from the rows that are left
of it. A send that the database refuses stores nothing, its key neither; so when one row is refused the others
go under the same key. And when the key turns out to be used with another set of rows, an earlier run got
through that this state knows nothing of: a conflict, which counts as handed over. A key of the rows that are
left would be a new one there, and reach all but one of them twice.

While one statement is under way, a thread reads the next chunk. What can go wrong: the database goes away; it
is asked again until it is back, for as long as the key of the chunk under way holds.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any, Literal, Protocol
from uuid import UUID

import msgspec

from pgmail.client_seal import Sealer
from pgmail.errors import DatabaseAway, Refused
from pgmail.mailing.people import People
from pgmail.mailing.scan import Refusal, Scan, digest
from pgmail.mailing.state import Settled, State, in_doubt, utc_now
from pgmail.mailing.table import Fault, Row, Table
from pgmail.mailing.trial import hand_over, missing
from pgmail.shaping.backoff import Backoff
from pgmail.store.single import Connection

Connect = Callable[[], AbstractAsyncContextManager[Connection]]
"""Opens a connection that commits by itself, as `store.single.lend` does."""

_PERSON = re.compile(r"/to/(\d+)(?:/.*)?")


class Watch(Protocol):
    """Who is told how it goes."""

    def refuse(self, refusal: Refusal) -> None:
        """A row is not sent."""

    def progress(self, done: int, refused: int) -> None:
        """So many octets were read (in the first pass) or rows handed over; so many rows were refused."""

    def say(self, text: str) -> None:
        """A line for a person."""


class Handed(msgspec.Struct):
    """What was handed over, in recipients: by this run and by earlier ones; refused by SQL, in rows.

    `conflicts` and `skipped` are recipients that this run left alone: see `Settled`.
    """

    enqueued: int = 0
    already: int = 0
    refused: int = 0
    conflicts: int = 0
    skipped: int = 0
    emails: list[UUID] = []


class Chunk(msgspec.Struct):
    """Rows that are one email: those to send, with their `to` items beside them, and how many rows in all."""

    number: int
    digest: bytes
    count: int
    last_line: int
    rows: list[Row]
    people: list[dict[str, Any]]
    refused: list[tuple[int, str, str, str]] = []

    @property
    def where(self) -> str:
        """The chunk as a person finds it."""
        return f"chunk {self.number + 1} (rows up to line {self.last_line:,})"


def key_of(identity: dict[str, str | None], digest: bytes, number: int) -> str:
    """Return the idempotency key of a chunk: the same for the same rows of the same mailing, on any host."""
    mailing = {
        name: value for name, value in identity.items() if name != "database"
    }  # it may have many names
    facts = msgspec.json.encode([mailing, digest.hex(), number], order="sorted")
    return "mailing-" + hashlib.blake2b(facts, digest_size=24).hexdigest()


def chunks(table: Table, people: People, found: Scan, settled: Callable[[int], bool]) -> Iterator[Chunk]:
    """Read the list again, a chunk at a time. Raises Refused (`list_changed`) if it is not the same any more.

    Of chunks that are settled, the rows come without their people.
    """
    batch: list[Row] = []
    number = 0
    for row in table.rows():
        batch.append(row)
        if len(batch) == found.chunk:
            yield _chunk(table, people, found, number, batch, done=settled(number))
            number, batch = number + 1, []
    if batch:
        yield _chunk(table, people, found, number, batch, done=settled(number))
        number += 1
    if number != len(found.digests):
        raise _changed()


def _chunk(table: Table, people: People, found: Scan, number: int, batch: list[Row], *, done: bool) -> Chunk:
    marked = digest(table, [row.cells for row in batch])
    if number >= len(found.digests) or marked != found.digests[number]:
        raise _changed()
    first = number * found.chunk
    rows = [row for position, row in enumerate(batch, first) if not found.leaves_out(position)]
    recipients = [] if done else [people.recipient(row.cells) for row in rows]
    return Chunk(number, marked, len(batch), batch[-1].line, rows, recipients)


class Sending:
    """Hands a list over, chunk after chunk. `handed` tells how far it is, at any moment."""

    def __init__(
        self,
        table: Table,
        people: People,
        found: Scan,
        state: State,
        body: dict[str, Any],
        *,
        connect: Connect,
        watch: Watch,
        doubtful: Literal["skip", "send"] | None = None,
        sealer: Sealer | None = None,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        """`body` is the email without `to`; `doubtful` decides about chunks that outlived their key.

        `sealer` seals where the stream seals.
        """
        self._sealer = sealer
        self._people, self._found, self._state, self._body = people, found, state, body
        self._connect, self._watch, self._doubtful, self._clock = connect, watch, doubtful, clock
        self._walk = chunks(table, people, found, state.settled.__contains__)
        self._learned: list[str] = []
        self._rows = 0
        self.handed = Handed()

    async def run(self) -> Handed:
        """Hand over what is left. Raises Refused, and DatabaseAway if there never was a database."""
        backoff = Backoff(random.random, base=0.5, cap=30.0)
        ahead = self._read()
        chunk: Chunk | None = None
        met = False
        try:
            while True:
                try:
                    async with self._connect() as connection:
                        met = True
                        while True:
                            if chunk is None:
                                if (chunk := await asyncio.shield(ahead)) is None:
                                    return self.handed
                                ahead = self._read()
                            await self._hand_over(connection, chunk)
                            chunk = None
                            backoff.reset()
                except DatabaseAway as error:
                    if not met:
                        raise
                    seconds = backoff.next()
                    self._watch.say(f"{error}; nothing is lost, trying again in {seconds:.0f} s")
                    await asyncio.sleep(seconds)
        finally:
            # The thread must be through with the file before anybody closes it.
            await asyncio.wait([ahead])
            if not ahead.cancelled():
                ahead.exception()  # seen: an earlier error is the one to tell
            self._state.sync()

    def _read(self) -> asyncio.Task[Chunk | None]:
        return asyncio.create_task(asyncio.to_thread(next, self._walk, None))

    async def _hand_over(self, connection: Connection, chunk: Chunk) -> None:
        """Send what is left of a chunk, unless that was done."""
        settled = self._state.settled.get(chunk.number)
        if settled is None and not self._given_up(chunk):
            await self._send(connection, chunk)
        elif settled is not None:
            self._recall(chunk, settled)
        self._rows += chunk.count
        self._watch.progress(self._rows, self._found.refused + self.handed.refused)

    async def _send(self, connection: Connection, chunk: Chunk) -> None:
        handed = self.handed
        for name in self._learned:
            self._take_out_without(chunk, name)
        while chunk.people:
            self._state.begin_chunk(chunk.number, chunk.digest, self._clock())
            try:
                email = await hand_over(connection, self._email(chunk), self._sealer)
            except Refused as refused:
                if refused.code == "idempotency_conflict":
                    handed.conflicts += len(chunk.people)
                    self._settle(chunk, conflict=True)
                    self._watch.say(
                        f"{chunk.where} was handed over in the last 24 hours with other options or rows; it is "
                        "left alone (--mailing NAME makes this a mailing of its own)"
                    )
                    return
                if not self._take_out(chunk, refused):
                    raise
            else:
                handed.enqueued += len(chunk.people)
                handed.emails.append(email)
                self._settle(chunk, id=email, recipients=len(chunk.people))
                return
        self._settle(chunk)

    def _email(self, chunk: Chunk) -> dict[str, Any]:
        body = {**self._body, "to": chunk.people}
        body["idempotency_key"] = key_of(self._state.begin.identity, chunk.digest, chunk.number)
        at = self._state.begin.scheduled_at
        # A long list outlasts "in 1 minute"; a moment that has come means now.
        if at is not None and datetime.fromisoformat(at) > self._clock():
            body["scheduled_at"] = at
        return body

    def _given_up(self, chunk: Chunk) -> bool:
        """Decide about a chunk that may have outlived its key; whether it is left alone."""
        begun = self._state.begun.get(chunk.number)
        if begun is None or not in_doubt(begun.at, self._clock()):
            return False
        if self._doubtful == "send":
            self._state.forget(chunk.number)
            return False
        if self._doubtful == "skip":
            self.handed.skipped += len(chunk.people)
            self._settle(chunk, skipped=True)
            return True
        key = key_of(self._state.begin.identity, chunk.digest, chunk.number)
        because = (
            f"{chunk.where} was begun at {begun.at:%Y-%m-%d %H:%MZ}, longer ago than its idempotency key holds: "
            f"nobody can tell from here whether it was handed over. Look for an email with the key {key} "
            "(ops/docs/mailings.md), then run this again with --in-doubt skip if there is one, else --in-doubt send"
        )
        raise Refused("chunk_in_doubt", "", because, 409)

    def _recall(self, chunk: Chunk, settled: Settled) -> None:
        """Count a chunk as it was settled before, and say again which of its rows were refused."""
        handed, refused = self.handed, {fault[0]: fault for fault in settled.refused}
        for row in chunk.rows:
            if row.line in refused:
                self._refuse(row, Fault(*refused[row.line][1:]))
        if settled.id is not None:
            handed.already += settled.recipients
            handed.emails.append(settled.id)
        elif settled.conflict:
            handed.conflicts += len(chunk.rows) - len(refused)
        elif settled.skipped:
            handed.skipped += len(chunk.rows) - len(refused)

    def _take_out(self, chunk: Chunk, refused: Refused) -> bool:
        """Take the rows out that a refusal is about; whether there was one."""
        if match := _PERSON.fullmatch(refused.field):
            position = int(match[1])
            if position >= len(chunk.rows):
                return False
            header = self._people.header
            fault = Fault(header.address_name, refused.code, refused.message)
            self._drop(chunk, {position}, fault)
            return True
        if (name := missing(refused)) is None:
            return False
        # Another version of the template was published since the trial.
        self._people.require([name])
        self._learned.append(name)
        return self._take_out_without(chunk, name)

    def _take_out_without(self, chunk: Chunk, name: str) -> bool:
        lacking = {
            position for position, person in enumerate(chunk.people) if name not in person["variables"]
        }
        because = f"the template needs {name!r}, and the cell is empty"
        self._drop(chunk, lacking, Fault(name, "missing_variable", because))
        return bool(lacking)

    def _drop(self, chunk: Chunk, positions: set[int], fault: Fault) -> None:
        for position in sorted(positions):
            row = chunk.rows[position]
            chunk.refused.append((row.line, fault.column, fault.code, fault.message))
            self._refuse(row, fault)
        chunk.rows = [row for position, row in enumerate(chunk.rows) if position not in positions]
        chunk.people = [person for position, person in enumerate(chunk.people) if position not in positions]

    def _refuse(self, row: Row, fault: Fault) -> None:
        self.handed.refused += 1
        self._watch.refuse(Refusal(row, fault))

    def _settle(self, chunk: Chunk, **facts: Any) -> None:
        self._state.settle(Settled(chunk.number, chunk.digest.hex(), refused=chunk.refused, **facts))


def _changed() -> Refused:
    return Refused("list_changed", "", "the list was changed while it was read; run this again", 409)
