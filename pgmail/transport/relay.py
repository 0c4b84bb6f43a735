"""The SMTP relay: a few kept-open connections over which mail after mail goes.

A mail waits for a permit (`max_connections`), takes the idle session used last (the others may then grow old
and be closed) or opens a new one. If the session had been idle and turns out to be closed before anything of
the mail was answered, the mail goes over a new connection once, and nobody hears of it: nothing of the mail
was sent. Any other break is a `Result`, because the remote may remember the mail.
"""

from __future__ import annotations

import asyncio
import time

import msgspec

from pgmail.domain.reply import Envelope, Result
from pgmail.transport.base import OnDot, closed_error
from pgmail.transport.opening import open_session, tls_context
from pgmail.transport.relay_config import RelayConfig
from pgmail.transport.session import Session


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What the remote said it takes. `size`: octets of the biggest mail, None without a limit."""

    eightbit: bool
    smtputf8: bool
    pipelining: bool
    size: int | None = None


class SmtpRelay:
    """A `Transport` to one relay. Belongs to the event loop it is first used on."""

    def __init__(self, config: RelayConfig) -> None:
        """Read the certificates, connect nowhere yet. Raises ValueError if `ca` cannot be read."""
        self.name = config.shown
        self.config = config
        self._context = tls_context(config)
        self._permits = asyncio.Semaphore(config.max_connections)
        self._idle: list[tuple[float, Session]] = []  # (idle since, session); used last at the end
        self._capabilities: Capabilities | None = None
        self._farewells: set[asyncio.Task[None]] = set()
        self._reaper: asyncio.TimerHandle | None = None
        self._closed = False

    @classmethod
    def from_url(cls, url: str) -> SmtpRelay:
        """Make a relay from a URL as `RelayConfig.from_url` reads it."""
        return cls(RelayConfig.from_url(url))

    def capabilities(self) -> Capabilities | None:
        """Return what the remote offered last, or None before the first connection."""
        return self._capabilities

    @property
    def idle_connections(self) -> int:
        """How many connections are open and carry nothing."""
        return len(self._idle)

    async def deliver(self, envelope: Envelope, on_dot: OnDot | None = None) -> Result:
        """Hand one envelope to the relay. See `Transport`.

        Waits for a connection if all are in use. Raises RuntimeError after `close`.
        """
        if self._closed:
            raise closed_error(self.name)
        async with self._permits:
            session = self._take()
            if session is not None:
                try:
                    result = await session.deliver(envelope, on_dot)
                finally:
                    self._give_back(session)
                if not session.stale:
                    return result
            opened = await self._open()
            if isinstance(opened, Result):
                return opened
            try:
                return await opened.deliver(envelope, on_dot)
            finally:
                self._give_back(opened)

    async def probe(self) -> Result:
        """Connect, greet, secure, authenticate and quit, on a connection of its own.

        If all went well, the result has the last step's phase (EHLO or AUTH) and its 2xx reply.
        """
        if self._closed:
            raise closed_error(self.name)
        started = time.monotonic()
        opened = await self._open()
        if isinstance(opened, Result):
            return opened
        phase, reply = opened.welcome
        await opened.quit()
        return Result(
            phase=phase,
            reply=reply,
            remote_host=opened.remote_host,
            tls=opened.tls,
            ms=round((time.monotonic() - started) * 1000),
        )

    async def close(self) -> None:
        """Quit all idle connections, each in a few seconds at most. Mails on their way end by themselves."""
        self._closed = True
        if self._reaper is not None:
            self._reaper.cancel()
            self._reaper = None
        while self._idle:
            self._farewell(self._idle.pop()[1])
        while self._farewells:
            await asyncio.gather(*self._farewells)

    async def _open(self) -> Session | Result:
        opened = await open_session(self.config, self._context)
        if isinstance(opened, Session):
            offered = opened.extensions
            self._capabilities = Capabilities(
                eightbit=offered.eightbit,
                smtputf8=offered.smtputf8,
                pipelining=offered.pipelining,
                size=offered.size,
            )
        return opened

    def _take(self) -> Session | None:
        while self._idle:
            since, session = self._idle.pop()
            if session.usable and time.monotonic() - since < self.config.idle_seconds:
                return session
            self._farewell(session)
        return None

    def _give_back(self, session: Session) -> None:
        if not session.usable or self._closed or session.mails >= self.config.max_mails_per_connection:
            self._farewell(session)
            return
        self._idle.append((time.monotonic(), session))
        if self._reaper is None:
            self._reap_in(self.config.idle_seconds)

    def _farewell(self, session: Session) -> None:
        task = asyncio.get_running_loop().create_task(session.quit())
        self._farewells.add(task)
        task.add_done_callback(self._farewells.discard)

    def _reap_in(self, seconds: float) -> None:
        self._reaper = asyncio.get_running_loop().call_later(seconds, self._reap)

    def _reap(self) -> None:
        """Quit what was idle for too long; come again when the next one will be."""
        self._reaper = None
        limit = self.config.idle_seconds
        now = time.monotonic()
        while self._idle and (now - self._idle[0][0] >= limit or not self._idle[0][1].usable):
            self._farewell(self._idle.pop(0)[1])
        if self._idle:
            self._reap_in(max(0.01, self._idle[0][0] + limit - now))
