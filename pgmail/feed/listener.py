"""One who listens: what waits for it, and why it was sent away.

Chunks are put by the hub and taken by whoever writes them to the network. What waits is bounded: a listener that
reads more slowly than things happen is dropped, and what waited for it is let go. It loses nothing: with the cursor
of the last event that it read it is told the rest.
"""

from __future__ import annotations

import asyncio
from collections import deque
from itertools import count
from typing import Literal, NamedTuple
from uuid import UUID

from pgmail.feed.events import Chunk, Filter, Form
from pgmail.store.keys import Caller

MAX_WAITING_BYTES = 2 << 20  # what happens in a quarter of a second where 13,000 events a second do
_numbers = count()


class Dropped(NamedTuple):
    """Why a listener was sent away: a word for programs, and one for people."""

    reason: Literal["slow", "key_ended", "cursor_gone", "shutting_down", "feed_not_ready", "crowded"]
    message: str


SLOW = Dropped("slow", "events came faster than they were read; go on from the last one that you have")
KEY_ENDED = Dropped("key_ended", "the API key was revoked or has expired")
GONE = Dropped(
    "cursor_gone",
    "the database was restored, failed over or is another: go on without a cursor, with since, and drop known ids",
)
CLOSING = Dropped("shutting_down", "this server is shutting down; go on from the last event that you have")
CROWDED = Dropped("crowded", "all places are taken, most of them by your organisation, and another one came")
NOT_READY = Dropped(
    "feed_not_ready", "the indexes of the feed are being made; run `pgmail db upgrade` to its end"
)


class Listener:
    """A queue of chunks for one connection. `form` says of which kind they are."""

    def __init__(self, caller: Caller, filter: Filter, form: Form) -> None:
        self.number = next(_numbers)  # who came later has a greater one
        self.tenant_id: int = caller.tenant_id
        self.key_id: UUID = caller.key_id
        self.filter = filter.within(caller)
        self.form: Form = form
        self.dropped: Dropped | None = None
        self._chunks: deque[Chunk] = deque()
        self._bytes = 0
        self._something = asyncio.Event()

    @property
    def group(self) -> tuple[Filter, Form]:
        """Listeners of a tenant with the same group are told the same octets."""
        return self.filter, self.form

    def put(self, chunk: Chunk, size: int) -> None:
        """Let a chunk of so many octets wait, or drop this listener where too much waits already."""
        if self.dropped is not None:
            return
        if self._bytes + size > MAX_WAITING_BYTES and self._chunks:
            self.drop(SLOW)
            return
        self._chunks.append(chunk)
        self._bytes += size
        self._something.set()

    def drop(self, why: Dropped) -> None:
        """Send it away. What waits is told first, but not to one that is slow or may know no more."""
        if self.dropped is None:
            self.dropped = why
            if why in {SLOW, KEY_ENDED}:
                self._chunks.clear()
            self._something.set()

    async def take(self, seconds: float) -> list[Chunk]:
        """Return what waits, as soon as something does; nothing once dropped, or after so many seconds."""
        if not self._chunks and self.dropped is None:
            self._something.clear()
            try:
                async with asyncio.timeout(seconds):
                    await self._something.wait()
            except TimeoutError:
                return []
        found = list(self._chunks)
        self._chunks.clear()
        self._bytes = 0
        return found
