"""Live parts of pages: one refresh for all who look at the same thing, told to each by server-sent events.

A channel is what is looked at (the overview of a tenant over a span, one email). While somebody listens, one task asks
the database every so often and keeps the newest parts; listeners are woken, and a slow one skips what it missed, since
only the newest counts. Nobody listening costs nothing.

    event: parts          data: {"id of an element": "its new HTML", ...}
    event: end            the session has ended, or the server ends: data says why ("signed_out", "stopping", "final")

What can go wrong: one key looks at very many things at once, each of which asks the database, or leaves no room for
others. So it has `MOST_OF_KEY` channels of its own at most and `MOST_PAGES_OF_KEY` listeners, and a process
`MOST_LISTENERS` listeners; beyond, the page is shown as it was when it was
loaded. The database is away: then the parts stay as they are and it is asked again; the page says since when
nothing came.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from typing import Any

import structlog
from litestar.response import Stream

from pgmail.dashboard.frame import ALWAYS
from pgmail.dashboard.guard import AnyRequest, caller_behind
from pgmail.errors import PgmailError, Refused
from pgmail.service import first_of

log = structlog.get_logger()

CHECK_SECONDS = 2.0  # between two looks whether the session lives
MOST_OF_KEY = 60  # things that a key looks at first; what others look at already costs nothing
MOST_PAGES_OF_KEY = 500
MOST_LISTENERS = 2_000
PING_CHECKS = 5  # of which each so manieth says something, so that a connection that is gone is noticed

Parts = dict[str, str]
Make = Callable[[], Awaitable[Parts | None]]


_AGO = re.compile(r"(data-ago>)[^<]*")


def _told(text: str) -> str:
    """A part without how long ago things were: pages count that by themselves, and who listens hears of news only."""
    return _AGO.sub(r"\1", text)


class Channel:
    """What is looked at: its newest parts, and who is to be woken."""

    def __init__(self, owner: Hashable = None) -> None:
        self.owner = owner
        self.parts: Parts = {}
        self.version = 0
        self.final = False
        self.listeners = 0
        self.task: asyncio.Task[None] | None = None
        self.news = asyncio.Event()

    def tell(self, parts: Parts | None) -> None:
        """Keep the newest parts and wake everybody; None says that nothing will change any more."""
        if parts is None:
            self.final = True
        else:
            changed = {
                name: text
                for name, text in parts.items()
                if name not in self.parts or _told(self.parts[name]) != _told(text)
            }
            if not changed:
                return
            self.parts |= changed
        self.version += 1
        self.news.set()
        self.news = asyncio.Event()


class Hub:
    """All channels of a process. For one event loop."""

    def __init__(self, stopping: asyncio.Event) -> None:
        self.stopping = stopping
        self._channels: dict[Hashable, Channel] = {}
        self._listeners: Counter[Hashable] = Counter()

    def __len__(self) -> int:
        """Return how many channels somebody listens to."""
        return len(self._channels)

    def need_room(self, key: Hashable, owner: Hashable) -> None:
        """Refuse (503 `too_many_listeners`) a listener for whom there is no room, on behalf of the API key `owner`."""
        full = self._listeners.total() >= MOST_LISTENERS or self._listeners[owner] >= MOST_PAGES_OF_KEY
        mine = sum(channel.owner == owner for channel in self._channels.values())
        if full or (key not in self._channels and mine >= MOST_OF_KEY):
            raise Refused("too_many_listeners", "", "too many live pages are open; close some", 503)

    @contextlib.asynccontextmanager
    async def listen(
        self, key: Hashable, make: Make, every: float, owner: Hashable = None
    ) -> AsyncIterator[Channel]:
        """Lend a channel, which `make` is asked for `every` so many seconds. `make` is the first listener's.

        `owner` is the key that it is counted for. Raises Refused as `need_room`.
        """
        self.need_room(key, owner)
        channel = self._channels.get(key)
        if channel is None:
            channel = self._channels[key] = Channel(owner)
            channel.task = asyncio.create_task(_refresh(channel, make, every))
        channel.listeners += 1
        self._listeners[owner] += 1
        try:
            yield channel
        finally:
            channel.listeners -= 1
            self._listeners -= Counter({owner: 1})  # what came to none goes
            if not channel.listeners:
                self._channels.pop(key, None)
                if channel.task is not None:
                    channel.task.cancel()


async def _refresh(channel: Channel, make: Make, every: float) -> None:
    while not channel.final:
        try:
            channel.tell(await make())
        except Refused as fault:
            log.debug("a live part ended", error=str(fault))  # what it shows is there no more
            channel.tell(None)
        except PgmailError as error:
            log.debug("a live part waits", error=str(error))
        except Exception:
            log.exception("a live part failed")
        await asyncio.sleep(every)


def stream(request: AnyRequest, key: Hashable, make: Make, every: float) -> Stream:
    """Answer with the parts of a channel as they change, as long as the session lives. Refused as `need_room`."""
    hub: Hub = request.app.state.live
    hub.need_room(
        key, request.state.session.key_id
    )  # refused while there is still a status to refuse it with
    headers = {**ALWAYS, "X-Accel-Buffering": "no"}
    return Stream(_events(request, hub, key, make, every), media_type="text/event-stream", headers=headers)


async def _events(
    request: AnyRequest, hub: Hub, key: Hashable, make: Make, every: float
) -> AsyncIterator[bytes]:
    yield b"retry: 2000\n\n"
    sent: Parts = {}
    version, quiet = 0, 0
    async with hub.listen(key, make, every, request.state.session.key_id) as channel:
        while not hub.stopping.is_set():
            news = channel.news
            if channel.version != version:
                version, quiet = channel.version, 0
                parts = {name: text for name, text in channel.parts.items() if sent.get(name) != text}
                sent.update(parts)
                if parts:
                    yield _event("parts", parts)
                if channel.final:
                    yield _event("end", "final")
                    return
            await first_of(news.wait(), hub.stopping.wait(), seconds=CHECK_SECONDS)
            try:
                await caller_behind(request, request.state.session)
            except Refused:
                yield _event("end", "signed_out")
                return
            except PgmailError:
                pass  # the database is away: nothing comes from it, and nothing is shown
            quiet += 1
            if quiet % PING_CHECKS == 0:
                yield b":\n\n"
    yield _event("end", "stopping")


def _event(name: str, data: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()
