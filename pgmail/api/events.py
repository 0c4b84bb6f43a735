"""`GET /events` and `GET /events/stream`: what happens, page by page or live (server-sent events).

Both tell the same events in the same order, of the key's tenant and within its limits, and go on from a cursor. A
stream ends when the client hangs up, or with an event `dropped` that says why: it was too slow, its key ended, this
server shuts down. A client that comes back with the id of the last event that it has (`Last-Event-ID`) is told all
that it missed.

What can go wrong: a client that neither reads nor hangs up. What waits for it is let go when it is dropped; its
connection is the operating system's to break (`server.listen`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import msgspec
from litestar import Response, get
from litestar.background_tasks import BackgroundTask
from litestar.response import Stream

from pgmail.api import params
from pgmail.api.openapi import operation
from pgmail.api.params import AnyRequest, caller_of
from pgmail.domain import cursor as cursors
from pgmail.domain.cursor import Cursor
from pgmail.domain.keylimits import need_stream
from pgmail.domain.states import EventType
from pgmail.errors import DatabaseAway, Refused
from pgmail.feed.events import Chunk, Filter
from pgmail.feed.hub import Hub
from pgmail.feed.listener import Listener
from pgmail.store.keys import Caller

BEAT_SECONDS = 15.0
RETRY_MS = 1_000
READ = "read"
MAX_PAGE = 1_000
FILTERS = ("type", "email", "tag", "stream")

_BESIDE = {
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx would keep events back until its buffer is full
}
_RESUME = "as the last event's id; goes on after it"


@get(
    "/events",
    scope=READ,
    operation_class=operation(query=("cursor", "since", "limit", *FILTERS)),
)
async def list_happened(request: AnyRequest) -> Response[dict[str, Any]]:
    """Tell what happened after a cursor, oldest first, and the cursor to ask with next time.

    Without a cursor it begins with what happens from now on, or from `since` on.
    """
    given = params.query(request, "cursor", "since", "limit", *FILTERS)
    caller, pages = caller_of(request), hub_of(request).pages
    wanted = filter_of(given, caller).within(caller)
    limit = params.limit_of(given, 100, MAX_PAGE)
    at = params.moment_of(given, "since")
    if (cursor := cursor_of(given.get("cursor"))) is not None and at is not None:
        raise Refused("invalid_parameter", "/since", "a page comes after a cursor or a moment, not both")
    if cursor is None:
        cursor = await pages.begin(at, wanted)
        if at is None:
            return _page([], cursor, more=False)
    found, cursor, more = await pages.page(cursor, wanted, caller.tenant_id, limit)
    return _page([event.json for event in found], cursor, more=more)


@get(
    "/events/stream",
    scope=READ,
    operation_class=operation(
        query=("cursor", "since", *FILTERS),
        headers={"Last-Event-ID": _RESUME},
    ),
)
async def stream_events(request: AnyRequest) -> Stream:
    """Tell what happens as it happens (`text/event-stream`); ids of events are cursors."""
    given = params.query(request, "cursor", "since", *FILTERS)
    caller, hub = caller_of(request), hub_of(request)
    wanted = filter_of(given, caller).within(caller)
    cursor = cursor_of(request.headers.get("last-event-id") or given.get("cursor"))
    at = params.moment_of(given, "since")
    if cursor is not None:
        await hub.pages.check(cursor, wanted)  # refused while there is still a status to refuse it with
    elif at is not None:
        cursor = await hub.pages.begin(at, wanted)
    else:
        await hub.pages.now()
    listener = hub.enter(caller, wanted, "sse")
    return Stream(
        _told(hub, listener, cursor),
        media_type="text/event-stream",
        headers=_BESIDE,
        background=BackgroundTask(hub.leave, listener),
    )


async def _told(hub: Hub, listener: Listener, cursor: Cursor | None) -> AsyncIterator[bytes]:
    """Yield a stream's octets."""
    try:
        yield b"retry: %d\n\n" % RETRY_MS
        try:
            async for item in hub.chunks(listener, cursor, BEAT_SECONDS):
                # An id without data is no event; a client that comes back begins there.
                yield f": listening\nid: {item}\n\n".encode() if isinstance(item, Cursor) else _octets(item)
        except DatabaseAway:
            yield b'event: dropped\ndata: {"reason":"database_away","message":"the database cannot be reached"}\n\n'
        except Refused as error:
            yield b"event: dropped\ndata: %b\n\n" % msgspec.json.encode(
                {"reason": error.code, "message": error.message}
            )
        if listener.dropped is not None:
            yield b"event: dropped\ndata: %b\n\n" % msgspec.json.encode(listener.dropped._asdict())
    finally:
        hub.leave(listener)


def _octets(chunk: Chunk) -> bytes:
    assert isinstance(chunk, bytes)  # noqa: S101 - of a listener of the form sse
    return chunk


def hub_of(request: Any) -> Hub:
    """Return the process's reader of the feed."""
    hub: Hub = request.app.state.hub
    return hub


def cursor_of(text: str | None) -> Cursor | None:
    """Read a cursor, None for none. Raises Refused `invalid_parameter`."""
    if not text:
        return None
    try:
        return cursors.parse(text)
    except ValueError as error:
        raise Refused("invalid_parameter", "/cursor", str(error)) from None


def filter_of(given: dict[str, str], caller: Caller) -> Filter:
    """Return the filter of a query. Raises Refused: `invalid_parameter`, `stream_not_allowed`.

    `type` may be several, separated by commas.
    """
    types = frozenset(each for each in given.get("type", "").split(",") if each)
    if unknown := types - set(EventType):
        raise Refused(
            "invalid_parameter", "/type", f"{min(unknown)[:80]!r} is none of {', '.join(EventType)}"
        )
    email, tag, stream = given.get("email"), given.get("tag"), given.get("stream")
    if tag is not None and ":" not in tag:
        raise Refused("invalid_parameter", "/tag", "must be name:value")
    if stream is not None:
        need_stream(stream, caller.streams)
    name, _, value = (tag or "").partition(":")
    try:
        id_ = None if email is None else UUID(email)
    except ValueError:
        raise Refused("invalid_parameter", "/email", "must be the id of an email or a recipient") from None
    return Filter(types=types or None, email=id_, tag=None if tag is None else (name, value), stream=stream)


def _page(events: list[bytes], cursor: Cursor, *, more: bool) -> Response[Any]:
    # The events are JSON already, made once for all who are told them.
    body = b'{"object":"list","data":[%b],"cursor":"%b","has_more":%b}' % (
        b",".join(events),
        str(cursor).encode(),
        b"true" if more else b"false",
    )
    return Response(body, media_type="application/json")
