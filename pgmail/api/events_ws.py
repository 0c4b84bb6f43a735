"""`/events/ws`: what happens, live, as messages of a WebSocket (RFC 6455).

Each message is a JSON text: `{"cursor": ..., "event": {...}}`, or a cursor alone, up to which all was told. Who can
set a header sends the key in `Authorization`; a browser cannot, and sends `{"key": "...", "cursor": "..."}` as its
first message. A key is never taken from the address, which logs and histories keep.

Every end has a code and says why: 4000 + the HTTP status of what was refused (4401: the key), 4008 too slow, 1012
this server shuts down. What can go wrong: a page of another site that lets a visitor's browser connect. It has no
key to send, and is turned away by its Origin before that.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

import msgspec
from litestar import WebSocket, websocket
from litestar.exceptions import WebSocketDisconnect

from pgmail.access.keyring import need_scope
from pgmail.api import params
from pgmail.api.events import BEAT_SECONDS, FILTERS, READ, cursor_of, filter_of, hub_of
from pgmail.domain.cursor import Cursor
from pgmail.errors import DatabaseAway, Refused
from pgmail.feed.listener import Listener
from pgmail.store.keys import Caller

HELLO_SECONDS = 10.0
CODES: Mapping[str, int] = MappingProxyType(
    {
        "slow": 4008,
        "key_ended": 4401,
        "cursor_gone": 4410,
        "feed_not_ready": 4503,
        "crowded": 4503,
        "shutting_down": 1012,
    }
)

AnySocket = WebSocket[Any, Any, Any]


class Hello(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The first message of who sends no header."""

    key: str = ""
    cursor: str | None = None


@websocket("/events/ws")
async def socket_events(socket: AnySocket) -> None:
    """Tell what happens until the client hangs up or is dropped."""
    if not _same_site(socket):
        await socket.close(code=1008, reason="cross-origin")  # not accepted yet: the client sees a 403
        return
    await socket.accept()
    try:
        code, reason = await _serve(socket)
    except Refused as error:
        code, reason = 4000 + error.status, f"{error.code}: {error.message}"
    except DatabaseAway:
        code, reason = 4503, "database_away: the database cannot be reached; ask again"
    except WebSocketDisconnect:
        return
    with contextlib.suppress(WebSocketDisconnect):
        await socket.close(code=code, reason=_short(reason))


async def _serve(socket: AnySocket) -> tuple[int, str]:
    """Serve it; the code and reason to close with."""
    given = params.query(socket, "cursor", "since", *FILTERS)
    caller, cursor_text = await _greeted(socket, given.get("cursor"))
    need_scope(caller, READ)
    hub = hub_of(socket)
    wanted = filter_of(given, caller).within(caller)
    cursor, at = cursor_of(cursor_text), params.moment_of(given, "since")
    if cursor is None and at is not None:
        cursor = await hub.pages.begin(at, wanted)
    listener = hub.enter(caller, wanted, "ws")
    telling = asyncio.create_task(_tell(socket, listener, cursor))
    hanging_up = asyncio.create_task(_hung_up(socket))
    try:
        await asyncio.wait({telling, hanging_up}, return_when=asyncio.FIRST_COMPLETED)
        if telling.done():
            await telling
    finally:
        hub.leave(listener)
        for task in (telling, hanging_up):
            task.cancel()
        await asyncio.gather(telling, hanging_up, return_exceptions=True)
    if listener.dropped is None:
        raise WebSocketDisconnect(code=1000, detail="")
    return CODES[listener.dropped.reason], f"{listener.dropped.reason}: {listener.dropped.message}"


async def _tell(socket: AnySocket, listener: Listener, cursor: Cursor | None) -> None:
    async for item in hub_of(socket).chunks(listener, cursor, BEAT_SECONDS):
        if isinstance(item, Cursor):
            await socket.send_text(f'{{"cursor":"{item}"}}')
            continue
        for text in item:
            await socket.send_text(text)  # type: ignore[arg-type]
            if listener.dropped is not None and listener.dropped.reason == "slow":
                return


async def _hung_up(socket: AnySocket) -> None:
    """Return when the client hangs up. What it says meanwhile is nothing to us."""
    with contextlib.suppress(WebSocketDisconnect):
        while True:
            await socket.receive_data(mode="text")


async def _greeted(socket: AnySocket, cursor: str | None) -> tuple[Caller, str | None]:
    """Return whose key it is, from the header or the first message, and the cursor. Raises Refused."""
    address = socket.app.state.origins.of(socket.scope)
    header = socket.headers.get("authorization")
    if header is None:
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                hello = msgspec.json.decode(await socket.receive_data(mode="text"), type=Hello)
        except TimeoutError:
            raise Refused("missing_api_key", "/key", "no key came within 10 s", 401) from None
        except msgspec.MsgspecError:
            because = (
                'the first message must be {"key": "pgm_...", "cursor": "..."}, the cursor if there is one'
            )
            raise Refused("invalid_message", "", because, 400) from None
        header, cursor = f"Bearer {hello.key}", hello.cursor or cursor
    return await socket.app.state.keyring.caller(header, address), cursor


def _same_site(socket: AnySocket) -> bool:
    """Tell whether this comes from no browser, or from a page of this very host."""
    origin = socket.headers.get("origin")
    if origin is None:
        return True
    return bool(origin) and urlsplit(origin).netloc.lower() == socket.headers.get("host", "").lower()


def _short(reason: str) -> str:
    """A reason as a closing frame holds it: 123 octets (RFC 6455, section 5.5)."""
    return reason.encode()[:123].decode("utf-8", "ignore")
