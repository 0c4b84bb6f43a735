"""Which events somebody wants, and events as they go over the wire.

An event has a stable id (of email.queued and email.scheduled as they were handed over: the recipient's), a type, a
time and its facts; what it has no word for is left out. The database hands it over as finished JSON, once, however
many listen; and whoever wants the same is told the same octets.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal
from uuid import UUID

import msgspec

from pgmail.domain.cursor import Encoder
from pgmail.domain.states import EventType
from pgmail.store.feed import Event, Wanted
from pgmail.store.keys import Caller

Form = Literal["sse", "ws"]
Chunk = bytes | tuple[str, ...]
MOST_EMAILS = 64  # of a tenant that are asked for by themselves; of more all is read


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
            or self._by_email
        )

    def asks(self, tenant: int) -> list[Wanted]:
        """Return what to ask the database for: all that it wants, and as little more as is cheap."""
        if self.email is not None:
            return [Wanted(tenant, email=self.email)]
        if self.types is not None:
            return [Wanted(tenant, type=each) for each in sorted(self.types)]
        return [Wanted(tenant)]

    @property
    def by_facts(self) -> bool:
        """Whether an event's type alone does not tell if it is wanted."""
        return self.email is not None or self._by_email

    @property
    def _by_email(self) -> bool:
        """Whether it wants events by what their emails are: by stream, tag, or being a test."""
        return self.only_tests or any(each is not None for each in (self.tag, self.stream, self.streams))

    def wants(self, facts: Facts) -> bool:
        """Tell whether an event of a wanted type is wanted."""
        if self.email is not None and str(self.email) not in {facts.email_id, facts.recipient_id}:
            return False
        if self.stream is not None and facts.stream != self.stream:
            return False
        if self.streams is not None and facts.stream not in self.streams:
            return False
        if self.only_tests and not facts.test:
            return False
        return self.tag is None or facts.tags.get(self.tag[0]) == self.tag[1]


def asked(tenant: int, filters: Iterable[Filter]) -> list[Wanted]:
    """Return what to ask the database for so that it serves all of these filters."""
    found = {wish for each in filters for wish in each.asks(tenant)}
    every = Wanted(tenant)
    if every in found or sum(each.email is not None for each in found) > MOST_EMAILS:
        return [every]
    return list(found)


class Facts(msgspec.Struct, frozen=True):
    """What filters look at besides the type."""

    email_id: str
    recipient_id: str
    stream: str | None = None
    tags: dict[str, str] = {}
    test: bool = False


class _Object(msgspec.Struct):
    data: Facts


_objects = msgspec.json.Decoder(_Object)


class Page:
    """Events of one tenant that lie between the same snapshots, in order, and what they are on the wire.

    What is made of an event is made at first use, and kept for the others who listen.
    """

    def __init__(self, events: Sequence[Event], cursors: Encoder) -> None:
        self.events = events
        self._cursors = cursors
        self._facts: dict[bytes, Facts] = {}
        self._sse: dict[bytes, bytes] = {}
        self._ws: dict[bytes, str] = {}

    def wanted(self, filter: Filter) -> Sequence[Event]:
        """Return the events that are wanted."""
        events = self.events
        if (types := filter.types) is not None:
            events = [event for event in events if event.type in types]
        if filter.by_facts:
            events = [event for event in events if filter.wants(self._facts_of(event))]
        return events

    def chunk(self, filter: Filter, form: Form) -> tuple[Chunk, int]:
        """Return what is wanted as one chunk of a form, and how many octets or characters it has."""
        events = self.wanted(filter)
        if form == "sse":
            told = self._sse
            octets = b"".join([told.get(event.id) or self._as_sse(event) for event in events])
            return octets, len(octets)
        texts = tuple([self._ws.get(event.id) or self._as_ws(event) for event in events])
        return texts, sum(map(len, texts))

    def _facts_of(self, event: Event) -> Facts:
        facts = self._facts.get(event.id)
        if facts is None:
            facts = self._facts[event.id] = _objects.decode(event.json).data
        return facts

    def _as_sse(self, event: Event) -> bytes:
        """As a server-sent event; its id is the cursor."""
        xid, place, id_, _, type_, json = event
        octets = b"id: %b\nevent: %b\ndata: %b\n\n" % (
            self._cursors.at(xid, place, id_),
            type_.encode(),
            json,
        )
        self._sse[id_] = octets
        return octets

    def _as_ws(self, event: Event) -> str:
        """As a message of a WebSocket: `{"cursor": ..., "event": {...}}`."""
        xid, place, id_, _, _, json = event
        text = f'{{"cursor":"{self._cursors.at(xid, place, id_).decode()}","event":{json.decode()}}}'
        self._ws[id_] = text
        return text
