"""Mails kept in memory, for tests of applications: the newest `count` of them, within `limit_bytes`."""

from __future__ import annotations

import time
from collections import deque

import msgspec

from pgmail.domain.reply import Envelope, Phase, Reply, Result
from pgmail.transport.arrivals import Arrivals
from pgmail.transport.base import OnDot, closed_error


class Captured(msgspec.Struct, frozen=True, kw_only=True):
    """One mail as handed over. `at` is Unix time in seconds."""

    envelope: Envelope
    at: float


class CaptureTransport:
    """A `Transport` that keeps mails in memory. `mails` can be read after `close`."""

    def __init__(self, count: int = 1000, limit_bytes: int = 64 * 1024 * 1024) -> None:
        """Keep at most `count` mails of together `limit_bytes` octets; the oldest go first."""
        if count < 1 or limit_bytes < 1:
            raise ValueError("count: must be at least 1, and so must limit_bytes")
        self.name = "capture:"
        self._count = count
        self._limit_bytes = limit_bytes
        self._kept: deque[Captured] = deque()
        self._bytes = 0
        self._arrivals = Arrivals()
        self._closed = False

    @property
    def total(self) -> int:
        """How many mails were taken, the forgotten ones too."""
        return self._arrivals.total

    @property
    def mails(self) -> list[Captured]:
        """The mails kept, oldest first."""
        return list(self._kept)

    async def deliver(self, envelope: Envelope, on_dot: OnDot | None = None) -> Result:
        """Keep one mail. See `Transport`."""
        if self._closed:
            raise closed_error(self.name)
        if on_dot is not None:
            await on_dot()
        self._kept.append(Captured(envelope=envelope, at=time.time()))
        self._bytes += len(envelope.body)
        while len(self._kept) > self._count or (self._bytes > self._limit_bytes and len(self._kept) > 1):
            self._bytes -= len(self._kept.popleft().envelope.body)
        self._arrivals.count()
        return Result(phase=Phase.DOT, reply=Reply(250, "captured", "2.0.0"))

    async def wait_for(self, total: int, seconds: float = 10.0) -> None:
        """Wait until `total` mails were taken since the start. Raises TimeoutError."""
        await self._arrivals.wait_for(total, seconds)

    def clear(self) -> None:
        """Forget the mails kept; `total` goes on."""
        self._kept.clear()
        self._bytes = 0

    async def probe(self) -> Result:
        """Say that memory is there."""
        if self._closed:
            raise closed_error(self.name)
        return Result(phase=Phase.CONNECT, reply=Reply(250, "ready", "2.0.0"))

    async def close(self) -> None:
        """Accept no more mail."""
        self._closed = True
