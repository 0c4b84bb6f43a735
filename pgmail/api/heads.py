"""uvicorn's protocol, with the head of an answer and its first octets in one write.

uvicorn writes them apart, though an answer of this API is mostly one small body: two system calls, two packets, and
a client that wakes up for half an answer. Here a head waits for what is written next, and if that does not come in the
same turn of the loop, as with a stream of events, goes at the end of it.

What can go wrong: a head that is forgotten. So it goes before a connection is closed, too.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_BEGIN = b"HTTP/1.1 "
_END = b"\r\n\r\n"


class Protocol(HttpToolsProtocol):
    """One connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, with a transport that joins."""
        joined: Any = Joined(transport)
        super().connection_made(joined)


class Joined:
    """A transport that holds an answer's head back until it is followed, for a turn of the loop at most."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._head = b""
        self._turn: asyncio.Handle | None = None
        self.is_closing = transport.is_closing  # asked for each answer

    def __getattr__(self, name: str) -> Any:
        """Do all else as the transport does."""
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Write octets, after the head that waits, or hold them if they are one."""
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
            data, self._head = self._head + data, b""
        elif data.startswith(_BEGIN) and data.endswith(_END):
            self._head = data
            self._turn = self._loop.call_soon(self._flush)
            return
        self._transport.write(data)

    def close(self) -> None:
        """Close once all that was written has been sent."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
            head, self._head = self._head, b""
            self._transport.write(head)
