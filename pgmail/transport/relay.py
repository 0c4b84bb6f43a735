"""The SMTP relay: a few kept-open connections over which mail after mail goes.

A mail takes the idle connection used last (the others may then grow old and be closed); without one, a new
connection is opened for it while there may be more; else it takes the second place on a busy one, where its
commands travel with the body of the mail before; else it waits. Whatever becomes free is given to the mail
that waited longest, from inside the connection's own reading, so that no task has to wake up for it.

If a connection turns out to be closed before anything of a mail was answered, the mail goes over another one,
and nobody hears of it: nothing of the mail was sent. Any other break is a `Result`, because the remote may
remember the mail. A connection counts until its socket is closed, so that the remote never sees more of them
than `max_connections`, those of processes apart included (`lend`); only a probe has one beside them.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable

from pgmail.domain.reply import Envelope, Phase, Result
from pgmail.transport.base import OnDot, TooLate, Withheld, closed_error
from pgmail.transport.careful import carry
from pgmail.transport.commands import Capabilities
from pgmail.transport.opening import open_session, tls_context
from pgmail.transport.relay_config import RelayConfig
from pgmail.transport.session import Session
from pgmail.transport.transaction import Transaction

MOST_TRIES = 3
"""So many connections may break before anything of a mail was answered; the last break is its result."""


class SmtpRelay:
    """A `Transport` to one relay. Belongs to the event loop it is first used on."""

    def __init__(self, config: RelayConfig) -> None:
        """Read the certificates, connect nowhere yet. Raises ValueError if `ca` cannot be read."""
        self.name = config.shown
        self.config = config
        self._context = tls_context(config)
        self._most = config.max_connections
        self._open = 0  # connections with a socket, those being opened or closed too
        self._idle: list[tuple[float, Session]] = []  # (idle since, session); used last at the end
        # Busy, with a second place; the one that was freed first comes first.
        self._half: OrderedDict[Session, None] = OrderedDict()
        self._again: deque[Transaction] = deque()  # want a connection of which they are the first mail
        self._waiting: deque[Transaction] = deque()
        self._lending: deque[asyncio.Future[None]] = (
            deque()
        )  # want the place of a connection for somebody else
        self._openings: dict[asyncio.Task[Session | Result], None] = {}
        self._farewells: set[asyncio.Task[object]] = set()  # connections that are being closed
        self._capabilities: Capabilities | None = None
        self._reaper: asyncio.TimerHandle | None = None
        self._guard: Callable[[], bool] | None = None
        self._mails: set[Transaction] = set()  # in `deliver`
        self._closed = False

    @classmethod
    def from_url(cls, url: str) -> SmtpRelay:
        """Make a relay from a URL as `RelayConfig.from_url` reads it."""
        return cls(RelayConfig.from_url(url))

    # --- what it offers ---

    def capabilities(self) -> Capabilities | None:
        """Return what the remote offered last, or None before the first connection."""
        return self._capabilities

    @property
    def pipeline_depth(self) -> int:
        """How many mails one connection takes at a time, by what the remote offered last; 1 before that."""
        known = self._capabilities
        return known.pipeline_depth if known is not None else 1

    @property
    def open_connections(self) -> int:
        """How many connections are open, being opened or being closed."""
        return self._open

    @property
    def idle_connections(self) -> int:
        """How many connections are open and carry nothing."""
        return len(self._idle)

    def set_max_connections(self, n: int) -> None:
        """Change how many connections there may be, from now on. At 0 nobody sends and `deliver` waits.

        Idle connections above `n` are closed with QUIT, busy ones after the mails they have. Raises ValueError.
        """
        if n < 0:
            raise ValueError(f"n: must be at least 0, not {n}")
        self._most = n
        self._fill()

    def set_guard(self, guard: Callable[[], bool]) -> None:
        """Have `guard` asked right before each end of data; when it says no, `deliver` raises Withheld.

        To be set before the first mail: connections that are open keep what they have.
        """
        self._guard = guard

    async def deliver(self, envelope: Envelope, on_dot: OnDot | None = None) -> Result:
        """Hand one envelope to the relay. See `Transport`.

        Waits for a place on a connection if all are taken. Raises RuntimeError after `close`, and TooLate if it
        waited for longer than the envelope allows.
        """
        if self._closed:
            raise closed_error(self.name)
        mail = Transaction(envelope, on_dot, asyncio.get_running_loop())
        self._mails.add(mail)
        session = None if self._waiting or self._again else self._place()
        if session is not None:
            self._hand(mail, session)
        else:
            self._waiting.append(mail)
            self._fill()
        late = self._too_late_at(mail)
        try:
            if mail.ready is not None and await mail.ready and mail.session is not None:
                await carry(mail.session, mail)
            return await mail.done
        except TooLate:
            # It comes again with its next moment. A connection that is being opened for it stays: that may always
            # take longer than a moment lasts.
            self._abandon(mail, trim=False)
            raise
        except BaseException:
            self._abandon(mail)
            raise
        finally:
            self._mails.discard(mail)
            if late is not None:
                late.cancel()

    def recall(self) -> None:
        """End all mails whose end of data was not written: their `deliver` raises Withheld. The others go on."""
        for mail in list(self._mails):
            if mail.session is None or not mail.dotted:
                mail.fail(Withheld("this worker stops"))

    @staticmethod
    def _too_late_at(mail: Transaction) -> asyncio.TimerHandle | None:
        """Let a mail that waits for a place give up when its moment passes."""
        if mail.envelope.not_after is None or mail.written or mail.done.done():
            return None

        def give_up() -> None:
            if not mail.written:
                mail.fail(TooLate())

        seconds = mail.envelope.not_after - time.monotonic()
        return asyncio.get_running_loop().call_later(max(0.0, seconds), give_up)

    async def warm(self) -> Result | None:
        """Have a connection ready for the mail that comes next. Returns what stood in the way, None if it is there."""
        if self._closed:
            raise closed_error(self.name)
        if (session := self._idle_one()) is not None:
            self._shelve(session)
            return None
        self._open += 1
        task = asyncio.get_running_loop().create_task(open_session(self.config, self._context))
        self._openings[task] = None
        task.add_done_callback(self._opened)
        opened = await task
        return opened if isinstance(opened, Result) else None

    async def probe(self) -> Result:
        """Connect, greet, secure, authenticate and quit, on a connection of its own.

        If all went well, the result has the last step's phase (EHLO or AUTH) and its 2xx reply.
        """
        if self._closed:
            raise closed_error(self.name)
        started = time.monotonic()
        self._open += 1
        try:
            opened = await open_session(self.config, self._context)
            if isinstance(opened, Result):
                return opened
            self._capabilities = opened.extensions.capabilities()
            phase, reply = opened.welcome
            await opened.quit()
        finally:
            self._open -= 1
            self._fill()
        return Result(
            phase=phase,
            reply=reply,
            remote_host=opened.remote_host,
            tls=opened.tls,
            ms=round((time.monotonic() - started) * 1000),
        )

    @contextlib.asynccontextmanager
    async def lend(self, not_after: float | None = None) -> AsyncIterator[None]:
        """Give the place of one connection to another process, which opens its own in it; waits for a free place.

        It goes before mails that wait. Raises TooLate if there is none by `not_after` (monotonic).
        """
        asks: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lending.append(asks)
        self._fill()
        try:
            seconds = None if not_after is None else max(0.0, not_after - time.monotonic())
            try:
                async with asyncio.timeout(None if asks.done() else seconds):
                    await asks
            except TimeoutError:
                raise TooLate from None
            yield
        finally:
            if asks in self._lending:
                self._lending.remove(asks)
            elif not asks.cancelled():
                self._open -= 1
            self._fill()

    async def close(self) -> None:
        """Quit all idle connections, each in a few seconds at most. Mails on their way end by themselves.

        So do mails that wait for a place; if there may be no connection at all, they come to a result that
        says so.
        """
        self._closed = True
        if self._reaper is not None:
            self._reaper.cancel()
            self._reaper = None
        while self._idle:
            self._leave(self._idle.pop()[1])
        if self._most == 0:
            for mail in [*self._again, *self._waiting]:
                mail.settle(Result(phase=Phase.CONNECT, error="closed while no connection was allowed"))
            self._again.clear()
            self._waiting.clear()
        self._trim()
        while self._farewells:
            await asyncio.gather(*self._farewells, return_exceptions=True)

    # --- places for mails ---

    def _place(self) -> Session | None:
        """Find the session for a mail that comes while none waits."""
        session = self._idle_one()
        if session is None and self._open >= self._most:
            session = self._busy_one()
        return session

    def _idle_one(self) -> Session | None:
        while self._idle:
            since, session = self._idle.pop()
            if session.usable and time.monotonic() - since < self.config.idle_seconds:
                return session
            self._leave(session)
        return None

    def _busy_one(self) -> Session | None:
        # One that is about to write takes the commands along; on any other they are a write of their own.
        for session in self._half:
            if session.about_to_write and session.has_place:
                del self._half[session]
                return session
        while self._half:
            session = self._half.popitem(last=False)[0]
            if session.has_place:
                return session
        return None

    def _fill(self) -> None:
        """Find places for the mails that wait, and open connections for those that find none."""
        again, waiting = self._again, self._waiting
        while self._lending and self._open < self._most:
            asks = self._lending.popleft()
            if not asks.done():  # else it gave up just now
                self._open += 1
                asks.set_result(None)
        while self._idle and self._too_many:  # one has to leave for who asks for its place
            self._leave(self._idle.pop(0)[1])
        # Where one connection was found closed other idle ones may be, too: stale mails prefer a new one.
        while again and self._open >= self._most and (session := self._idle_one()) is not None:
            self._hand(again.popleft(), session)
        while waiting and not again and (session := self._idle_one()) is not None:
            self._hand(waiting.popleft(), session)
        while (
            len(again) + len(waiting) > len(self._openings) and self._open + len(self._lending) < self._most
        ):
            self._open += 1
            task = asyncio.get_running_loop().create_task(open_session(self.config, self._context))
            self._openings[task] = None
            task.add_done_callback(self._opened)
        while len(waiting) > len(self._openings) and not again and (session := self._busy_one()) is not None:
            self._hand(waiting.popleft(), session)

    def _hand(self, mail: Transaction, session: Session) -> None:
        session.take(mail)
        self._shelve(session)

    @property
    def _too_many(self) -> bool:
        return self._open - len(self._farewells) + len(self._lending) > self._most

    def _next(self, session: Session) -> Transaction | None:
        """Return the mail that is to take a session's free place."""
        if self._too_many or session.mails >= self.config.max_mails_per_connection:
            return None
        if not session.carried:
            if self._again:
                return self._again.popleft()
            return self._waiting.popleft() if self._waiting else None
        # A second place is for mails that no connection is being opened for. Those that went stale wait for
        # a first one, which there will never be if busy connections are kept busy.
        if self._again or len(self._waiting) <= len(self._openings):
            return None
        return self._waiting.popleft()

    def _shelve(self, session: Session) -> None:
        """Put a session where mails look for it, or say farewell."""
        self._half.pop(session, None)
        if not session.usable:
            return
        spent = self._too_many or session.mails >= self.config.max_mails_per_connection
        if session.carried:
            if not spent and session.has_place:
                self._half[session] = None
        elif spent or self._closed:
            self._leave(session)
        else:
            self._idle.append((time.monotonic(), session))
            if self._reaper is None:
                self._reap_in(self.config.idle_seconds)

    def _abandon(self, mail: Transaction, *, trim: bool = True) -> None:
        mail.done.cancel()
        if mail.session is not None:
            mail.session.abandon(mail)
            return
        for queue in (self._again, self._waiting):
            if mail in queue:
                queue.remove(mail)
        if trim:
            self._trim()

    # --- what sessions report (`session.Owner`) ---

    def freed(self, session: Session) -> None:
        """Give a session's free places to mails that wait."""
        while (self._waiting or self._again) and session.has_place:
            mail = self._next(session)
            if mail is None:
                break
            session.take(mail)
        self._shelve(session)

    def stale(self, mail: Transaction, result: Result) -> None:
        """Send a mail of which nothing was said over another connection, before all that wait."""
        if mail.done.done():
            return
        mail.tries += mail.written
        if mail.tries >= MOST_TRIES:
            mail.settle(result)
            return
        mail.session = None
        self._again.append(mail)
        self._fill()

    def gone(self, session: Session) -> None:
        """Forget a session whose socket is closed; its place is free for a new one."""
        self._open -= 1
        self._half.pop(session, None)
        self._idle = [entry for entry in self._idle if entry[1] is not session]
        self._fill()

    # --- opening and closing ---

    def _opened(self, task: asyncio.Task[Session | Result]) -> None:
        """Use a new connection. If there is none, the mail that waited longest comes to the same result."""
        self._openings.pop(task, None)
        waits = self._again or self._waiting
        if task.cancelled():
            self._open -= 1
        elif (fault := task.exception()) is not None:
            self._open -= 1
            if waits:
                waits.popleft().fail(fault)
        elif isinstance(opened := task.result(), Result):
            self._open -= 1
            if waits:
                waits.popleft().settle(opened)
        else:
            self._capabilities = opened.extensions.capabilities()
            opened.owner = self
            if self._guard is not None:
                opened.guard = self._guard
            self._open -= opened.closed
            if opened.usable:
                self.freed(opened)
            elif waits:  # it was lost just now, and maybe would be each time
                waits.popleft().settle(
                    Result(phase=Phase.MAIL, error="lost after the login", remote_host=opened.remote_host)
                )
        self._fill()

    def _trim(self) -> None:
        """Stop opening connections that nobody waits for any more."""
        surplus = len(self._openings) - len(self._again) - len(self._waiting)
        for task in list(self._openings)[::-1][: max(0, surplus)]:
            del self._openings[task]
            self._farewells.add(task)
            task.add_done_callback(self._farewells.discard)
            task.cancel()

    def _leave(self, session: Session) -> None:
        task: asyncio.Task[object] = asyncio.get_running_loop().create_task(session.quit())
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
            self._leave(self._idle.pop(0)[1])
        if self._idle:
            self._reap_in(max(0.01, self._idle[0][0] + limit - now))
