"""A client of server-sent events, as a browser reads them: events, and the id with which to come back."""

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import httpx


class Told(NamedTuple):
    """One event as it came."""

    id: str
    type: str
    data: dict[str, Any]


class Stream:
    """Reads a stream's events. `last` is the last id that came, also one without an event."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer, self.last = answer, ""
        self._lines = answer.aiter_lines()

    async def next(self) -> Told | None:
        """The next event; None at the end, or where only an id came."""
        kind, data = "message", ""
        async for line in self._lines:
            name, _, value = line.partition(": ")
            if name == "id":
                self.last = value
            elif name == "event":
                kind = value
            elif name == "data":
                data += value
            elif not line and (data or self.last):
                return Told(self.last, kind, json.loads(data)) if data else None
        return None

    async def take(self, count: int) -> list[Told]:
        """So many events."""
        found: list[Told] = []
        while len(found) < count:
            told = await self.next()
            if told is not None:
                found.append(told)
        return found


@contextlib.asynccontextmanager
async def listening(url: str, key: str, last: str | None = None, **query: Any) -> AsyncIterator[Stream]:
    """Listen from now on, or after `last`; begins once the server said that it does."""
    headers = {"Authorization": f"Bearer {key}"} | ({"Last-Event-ID": last} if last else {})
    async with (
        httpx.AsyncClient(timeout=30) as client,
        client.stream("GET", f"{url}/events/stream", params=query, headers=headers) as answer,
    ):
        assert answer.status_code == 200, (await answer.aread(), answer.status_code)
        made = Stream(answer)
        if not last:
            assert await made.next() is None
            assert made.last
        yield made
