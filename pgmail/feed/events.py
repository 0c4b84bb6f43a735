"""The event as users see it, and which events somebody wants.

An event has a stable id (of email.queued and email.scheduled as they were handed over: the recipient's), a type, a
time and its facts; what it has no word for is left out. It is encoded once, however many listen.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec

from pgmail.domain.cursor import Position
from pgmail.domain.states import EventType
from pgmail.store.keys import Caller

_FACTS = (
    *(
        "email_id",
        "recipient_id",
        "address",
        "stream",
        "tags",
        "attempt",
        "code",
        "enhanced",
        "reply",
        "class_",
    ),
    *("reason", "phase", "site", "relay", "remote_host", "tls", "ms", "worker", "detail", "test"),
)


class Filter(msgspec.Struct, frozen=True):
    """Which events; None is any. `email` is an email's id or a recipient's, `tag` is (name, value).

    `streams` and `only_tests` are what the key is limited to.
    """

    types: frozenset[str] | None = None
    email: UUID | None = None
    tag: tuple[str, str] | None = None
    stream: str | None = None
    streams: frozenset[str] | None = None
    only_tests: bool = False

    def within(self, caller: Caller) -> Filter:
        """Return the same for what a key reaches."""
        return msgspec.structs.replace(self, streams=caller.streams, only_tests=caller.test)

    @property
    def needs_emails(self) -> bool:
        """Whether what it wants cannot be told without the emails: that they were queued, their streams and tags."""
        return (
            self.types is None
            or not self.types.isdisjoint({EventType.QUEUED, EventType.SCHEDULED})
            or any(each is not None for each in (self.tag, self.stream, self.streams))
            or self.only_tests
        )

    def wants(self, row: Any) -> bool:
        """Tell whether an event (a row of the feed) is wanted."""
        if self.types is not None and row.type not in self.types:
            return False
        if self.email is not None and self.email not in {row.email_id, row.recipient_id}:
            return False
        if self.stream is not None and row.stream != self.stream:
            return False
        if self.streams is not None and row.stream not in self.streams:
            return False
        if self.only_tests and not row.test:
            return False
        return self.tag is None or (row.tags or {}).get(self.tag[0]) == self.tag[1]


class Event:
    """One event, and what it is on the wire: JSON made at first use, and its cursor."""

    __slots__ = ("_cursor", "_json", "_sse", "_ws", "row")

    def __init__(self, row: Any, cursor: Callable[[Position], str]) -> None:
        self.row = row
        self._cursor = cursor(position_of(row))
        self._json: bytes | None = None
        self._sse: bytes | None = None
        self._ws: str | None = None

    @property
    def json(self) -> bytes:
        """The event object."""
        if self._json is None:
            self._json = msgspec.json.encode(shape(self.row))
        return self._json

    @property
    def sse(self) -> bytes:
        """As a server-sent event; its id is the cursor."""
        if self._sse is None:
            head = f"id: {self._cursor}\nevent: {self.row.type}\ndata: ".encode()
            self._sse = b"%b%b\n\n" % (head, self.json)
        return self._sse

    @property
    def ws(self) -> str:
        """As a message of a WebSocket: `{"cursor": ..., "event": {...}}`."""
        if self._ws is None:
            self._ws = f'{{"cursor":"{self._cursor}","event":{self.json.decode()}}}'
        return self._ws


def position_of(row: Any) -> Position:
    """Return where an event stands in the feed."""
    return Position(row.xid, row.place, row.id)


def shape(row: Any) -> dict[str, Any]:
    """Return an event as an object: `object id type created_at data`, without what it has no word for."""
    data: dict[str, Any] = {}
    for name in _FACTS:
        value = getattr(row, name)
        if value is not None and value != {}:
            data[name.rstrip("_")] = value
    if not row.test:
        data.pop("test", None)
    if row.template is not None:
        data["template"] = {"id": row.template, "version": row.template_version}
    if row.email_created_at is not None:
        data["email_created_at"] = moment(row.email_created_at)
    return {
        "object": "event",
        "id": str(row.id),
        "type": row.type,
        "created_at": moment(row.at),
        "data": data,
    }


def moment(at: datetime) -> str:
    """Return a moment as ISO 8601 in UTC."""
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")
