"""Mails as a few lines on the terminal: who, to whom, the headers, the size. For development."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from pgmail.domain.reply import Envelope, Phase, Reply, Result
from pgmail.transport.base import OnDot, closed_error

_CONTROL = {code: "?" for code in (*range(32), *range(127, 160)) if code not in (9, 10)}


class ConsoleTransport:
    """A `Transport` that prints envelope and headers; it keeps nothing and sends nothing."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """`stream` defaults to standard output, as it is at the time of each mail."""
        self.name = "console:"
        self._stream = stream
        self._closed = False

    async def deliver(self, envelope: Envelope, on_dot: OnDot | None = None) -> Result:
        """Print one mail. See `Transport`."""
        if self._closed:
            raise closed_error(self.name)
        started = time.monotonic()
        text = show(envelope)
        if on_dot is not None:
            await on_dot()
        stream = self._stream or sys.stdout
        try:
            # One write, so that mails of several tasks and processes do not mix.
            stream.write(text)
            stream.flush()
        except (OSError, ValueError) as fault:  # ValueError: the stream was closed
            return Result(phase=Phase.BODY, error=f"cannot print: {fault}")
        ms = round((time.monotonic() - started) * 1000)
        return Result(phase=Phase.DOT, reply=Reply(250, "printed", "2.0.0"), ms=ms)

    async def probe(self) -> Result:
        """Say that the terminal is there."""
        if self._closed:
            raise closed_error(self.name)
        return Result(phase=Phase.CONNECT, reply=Reply(250, "ready", "2.0.0"))

    async def close(self) -> None:
        """Accept no more mail; the stream stays open."""
        self._closed = True


def show(envelope: Envelope) -> str:
    """Show envelope, headers and size as text; control characters, which could steer a terminal, as `?`."""
    head = envelope.body.partition(b"\r\n\r\n")[0].decode("utf-8", "replace").replace("\r\n", "\n")
    rule = "-" * 72
    lines = (
        f"{rule}\nfrom <{envelope.sender}> to <{envelope.recipient}>, {len(envelope.body)} octets\n\n{head}\n"
    )
    return lines.translate(_CONTROL)
