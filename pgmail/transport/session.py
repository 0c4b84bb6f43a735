"""One logged-in SMTP connection that carries mail after mail, with PIPELINING where offered (RFC 2920).

aiosmtplib waits for each reply before it writes on; this takes the connection over once aiosmtplib has logged
in, and spends two round trips a mail in place of four. Its one important property is to know how far a mail
got when the connection breaks: `Phase.DOT` from the moment the end of data was given to the socket buffer,
whether or not it left the machine, since nobody can tell.

What can go wrong besides refusals: a reply may come unasked (the connection is given up, for replies would be
paired with the wrong command), come early (before the end of data: the mail is refused, nothing is in doubt)
or never (each wait has a limit). A connection that breaks before the first command of a mail was answered is
`stale`: the remote closed it while it was idle, and the mail may go over another one.
"""

from __future__ import annotations

import asyncio
import errno
import math
import time
from collections import deque
from contextlib import suppress

from pgmail.domain.reply import Envelope, Phase, Reply, Result
from pgmail.transport.base import OnDot
from pgmail.transport.commands import Extensions, commands, refused_here, stuffed
from pgmail.transport.relay_config import Timeouts
from pgmail.transport.replies import RawReply, ReplyParser, shown

BLOCK_BYTES = 65_536
"""Bigger mails are written in blocks of this size, each with its own time limit (RFC 5321, 4.5.3.2.5)."""


class _Broken(Exception):  # noqa: N818 - the state of the connection
    """The connection cannot be used on; `gone` tells that the remote ended it (not a timeout or nonsense)."""

    def __init__(self, text: str, *, gone: bool = False) -> None:
        super().__init__(text)
        self.gone = gone


class Session(asyncio.Protocol):
    """A connection after EHLO, TLS and AUTH. One mail at a time; made by `opening.open_session`."""

    def __init__(
        self,
        transport: asyncio.Transport,
        *,
        extensions: Extensions,
        timeouts: Timeouts,
        welcome: tuple[Phase, Reply],
        remote_host: str | None = None,
        tls: str | None = None,
    ) -> None:
        self.extensions = extensions
        self.welcome = welcome  # the last step of the login and its reply
        self.remote_host = remote_host
        self.tls = tls
        self.mails = 0  # transactions begun
        self.stale = False  # the last mail broke before any of it was answered
        self._timeouts = timeouts
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._parser = ReplyParser()
        self._replies: deque[RawReply] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._fault: _Broken | None = None
        self._phase = Phase.MAIL
        self._busy = False
        self._quitting = False
        self._skip = 0  # replies on their way that nobody waits for: to RSET and to a lone dot
        self._full = False  # the write buffer is above its limit
        self._limit = 0.0  # seconds that the present wait may last
        self._deadline = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        # Resume only when all of it left the process: then the end of data follows at once and a break
        # before it is known to be one.
        transport.set_write_buffer_limits(high=BLOCK_BYTES, low=0)
        transport.set_protocol(self)

    # --- what the relay uses ---

    @property
    def usable(self) -> bool:
        """Tell whether another mail may be tried on this connection."""
        return self._fault is None and not self._quitting and not self._transport.is_closing()

    async def deliver(self, envelope: Envelope, on_dot: OnDot | None = None) -> Result:
        """Carry one mail. Never raises for what the remote does; look at `usable` and `stale` afterwards."""
        started = time.monotonic()
        self._busy = True
        self._phase = Phase.MAIL
        self.stale = False
        self.mails += 1
        reply: Reply | None = None
        error: str | None = None
        try:
            reply = await self._transact(envelope, on_dot)
            if self._replies:
                self._give_up("an unasked reply")
            elif reply.code == 421:
                # RFC 5321, section 3.8: the remote is closing the channel.
                self._give_up("the remote said 421")
                self.stale = self._phase is Phase.MAIL
        except _Broken as broken:
            error = str(broken)
            self.stale = broken.gone and self._phase is Phase.MAIL
            self._give_up(error)
        except BaseException:
            # Cancelled, or on_dot raised: the transaction is half done. Without its end of data the
            # remote must throw it away when the connection goes (RFC 5321, section 4.1.1.4).
            self._give_up("the mail was abandoned")
            raise
        finally:
            self._busy = False
        return Result(
            phase=self._phase,
            reply=reply,
            error=error,
            remote_host=self.remote_host,
            tls=self.tls,
            ms=round((time.monotonic() - started) * 1000),
        )

    async def quit(self) -> None:
        """Say QUIT, wait a little for the answer, close. Returns when the socket is closed."""
        if self.usable:
            self._quitting = True
            self._transport.write(b"QUIT\r\n")
            with suppress(TimeoutError):
                async with asyncio.timeout(self._timeouts.quit):
                    await asyncio.shield(self._closed)
        self._transport.abort()
        await asyncio.shield(self._closed)

    # --- one transaction (RFC 5321, section 3.3) ---

    async def _transact(self, envelope: Envelope, on_dot: OnDot | None) -> Reply:
        while self._skip:
            await self._wait(self._timeouts.command)
        refusal = refused_here(envelope, self.extensions)
        if refusal is not None:
            return refusal
        mail, rcpt = commands(envelope, self.extensions)
        limits = self._timeouts
        pipelining = self.extensions.pipelining
        if pipelining:
            self._write(b"%b%bDATA\r\n" % (mail, rcpt))
        refused: RawReply | None = None
        data: RawReply | None = None
        for phase, command, limit in (
            (Phase.MAIL, mail, limits.mail),
            (Phase.RCPT, rcpt, limits.rcpt),
            (Phase.DATA, b"DATA\r\n", limits.data),
        ):
            if refused is None:
                self._phase = phase
            try:
                if not pipelining:
                    self._write(command)
                answer = await self._next(limit)
            except _Broken as broken:
                if refused is None:
                    raise
                # The refusal is known; that the remote hung up after it changes nothing for this mail.
                self._give_up(str(broken))
                return refused.parsed()
            if phase is Phase.DATA:
                data = answer
            if refused is None and not (answer.code == 354 if phase is Phase.DATA else answer.code < 300):
                if answer.code < 400:
                    raise _Broken(f"unexpected reply to {phase.upper()}: {answer.code} {shown(answer.text)}")
                refused = answer
                if not pipelining:
                    break
            if answer.code == 421:
                break
        if refused is not None:
            if refused.code != 421:
                self._reset(data is not None and data.code == 354)
            return refused.parsed()
        return await self._send_data(envelope.body, on_dot)

    def _reset(self, started: bool) -> None:
        """Bring the remote back to the start; the answers are swallowed when they come.

        `started`: it awaits a message nobody has (MAIL or RCPT refused, DATA not), which RFC 2920, section
        3.1, ends with a lone dot. No recipient was accepted, so that this sends nothing.
        """
        if self.usable:
            self._skip += 2 if started else 1
            self._write(b".\r\nRSET\r\n" if started else b"RSET\r\n")

    async def _send_data(self, body: bytes, on_dot: OnDot | None) -> Reply:
        self._phase = Phase.BODY
        body, end = stuffed(body)
        if on_dot is None and len(body) <= BLOCK_BYTES:
            early = self._replies
            if not early:
                self._write(body + end)
        else:
            early = await self._send_blocks(body, on_dot)
            if not early:
                self._write(end)
        if early:
            raw = early.popleft()
            if raw.code < 400:
                raise _Broken(f"reply before the end of data: {raw.code} {shown(raw.text)}")
            # What follows would still be read as message text: this connection is of no more use.
            self._give_up("refused before the end of data")
            return raw.parsed()
        self._phase = Phase.DOT
        raw = await self._next(self._timeouts.dot)
        if 300 <= raw.code < 400:
            raise _Broken(f"unexpected reply to the end of data: {raw.code} {shown(raw.text)}")
        return raw.parsed()

    async def _send_blocks(self, body: bytes, on_dot: OnDot | None) -> deque[RawReply]:
        """Write the message without its end, as fast as the remote reads. Returns replies come early."""
        view = memoryview(body)
        for start in range(0, len(body), BLOCK_BYTES):
            if self._replies:
                return self._replies
            self._write(view[start : start + BLOCK_BYTES])
            while self._full and not self._replies:
                await self._wait(self._timeouts.block)
        if on_dot is not None:
            await on_dot()
        return self._replies

    # --- reading, writing, waiting ---

    def _write(self, octets: bytes | memoryview) -> None:
        if not self.usable:
            raise self._fault or _Broken("the connection is closed", gone=True)
        self._transport.write(octets)

    async def _next(self, seconds: float) -> RawReply:
        while not self._replies:
            await self._wait(seconds)
        return self._replies.popleft()

    async def _wait(self, seconds: float) -> None:
        """Wait until anything changes. Raises `_Broken` when the connection is lost or time is up."""
        if self._fault is not None:
            raise self._fault
        self._waiter = self._loop.create_future()
        self._arm(seconds)
        try:
            await self._waiter
        finally:
            self._waiter = None
            self._deadline = math.inf
        if self._fault is not None and not self._replies:
            raise self._fault

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _arm(self, seconds: float) -> None:
        # One timer outlives many waits and looks at the deadline when it fires: arming a timer for each
        # reply would cost more than parsing it.
        self._limit = seconds
        self._deadline = self._loop.time() + seconds
        if self._timer is None or self._timer_at > self._deadline:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = self._deadline
            self._timer = self._loop.call_at(self._deadline, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        left = self._deadline - self._loop.time()
        if left > 0.001:
            if self._deadline < math.inf:
                self._timer_at = self._deadline
                self._timer = self._loop.call_at(self._deadline, self._on_timer)
            return
        what = "the network took no data" if self._full else "no reply"
        self._fault = self._fault or _Broken(f"{what} for {self._limit:g} s")
        self._wake()

    def _give_up(self, why: str) -> None:
        self._fault = self._fault or _Broken(why)
        self._transport.abort()

    # --- called by the event loop ---

    def data_received(self, data: bytes) -> None:
        """Take octets of the remote: replies awaited, replies to skip, or a farewell."""
        for raw in self._parser.feed(data):
            if self._quitting:
                self._transport.close()
            elif self._skip:
                self._skip -= 1
                if raw.code == 421 or (self._skip == 0 and raw.code >= 300):
                    self._fault = self._fault or _Broken("the connection could not be reset", gone=True)
                    self._transport.abort()
            elif self._busy:
                self._replies.append(raw)
            else:
                self._fault = self._fault or _Broken(f"the remote said {raw.code}, unasked", gone=True)
                self._transport.abort()
        if self._parser.fault is not None:
            self._give_up(self._parser.fault)
        self._wake()

    def pause_writing(self) -> None:
        """Note that the network is slower than we are."""
        self._full = True

    def resume_writing(self) -> None:
        """Note that all was taken."""
        self._full = False
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end of the connection and why."""
        if self._fault is None:
            text = "the remote closed the connection" if exc is None else _lost(exc)
            if self._parser.partial:
                text += f" in the middle of a reply: {shown(self._parser.partial)!r}"
            self._fault = _Broken(text, gone=True)
        if self._timer is not None:
            self._timer.cancel()
        if not self._closed.done():
            self._closed.set_result(None)
        self._wake()


def _lost(exc: Exception) -> str:
    if isinstance(exc, (ConnectionResetError, BrokenPipeError)) or (
        isinstance(exc, OSError) and exc.errno == errno.ECONNABORTED
    ):
        return "the remote reset the connection"
    return f"the connection was lost: {exc}"
