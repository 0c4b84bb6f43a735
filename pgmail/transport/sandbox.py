"""Where test email ends: in a folder if there is one, else nowhere but in the record. Never on a network.

A test goes through all that other mail does, so it needs somebody who takes it. This transport always does: the
content stands in the database anyway. What can go wrong: the folder is full or gone; then the reply says that the
mail was not kept.
"""

from __future__ import annotations

from pathlib import Path

from pgmail.domain.reply import Envelope, Phase, Reply, Result
from pgmail.transport.base import OnDot, closed_error
from pgmail.transport.file import FileTransport


class SandboxTransport:
    """A `Transport` that takes every mail and sends none. With a `folder` it keeps them there as `.eml` files."""

    def __init__(self, folder: Path | None = None) -> None:
        self.name = "test:"
        # Not made durable: what a crash takes of a test can be written again from the database.
        self._files = None if folder is None else FileTransport(folder, sync=False)
        self._closed = False

    async def deliver(self, envelope: Envelope, on_dot: OnDot | None = None) -> Result:
        """Take one mail; the reply says where it is. See `Transport`."""
        if self._closed:
            raise closed_error(self.name)
        if self._files is None:
            if on_dot is not None:
                await on_dot()
            return _taken("test: recorded, not sent")
        result = await self._files.deliver(envelope, on_dot)
        if result.reply is None:
            return _taken(f"test: not sent, and not kept either: {result.error}", result.ms)
        return _taken(f"test: kept as {result.reply.text}, not sent", result.ms)

    async def probe(self) -> Result:
        """Say that it is there."""
        if self._closed:
            raise closed_error(self.name)
        return Result(phase=Phase.CONNECT, reply=Reply(250, "ready", "2.0.0"))

    async def close(self) -> None:
        """Accept no more mail."""
        self._closed = True
        if self._files is not None:
            await self._files.close()


def _taken(text: str, ms: int = 0) -> Result:
    return Result(phase=Phase.DOT, reply=Reply(250, text, "2.0.0"), ms=ms)
