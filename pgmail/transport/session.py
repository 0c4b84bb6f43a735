"""One logged-in SMTP connection that carries mail after mail, with PIPELINING (RFC 2920) or CHUNKING (RFC 3030).

aiosmtplib waits for each reply before it writes on; this takes the connection over once aiosmtplib has logged
in. It is a state machine that runs where octets arrive, so that no task wakes up between two steps of a mail.
With PIPELINING a second mail stands in line: its MAIL, RCPT and DATA are written together with the end of data
of the first, and a busy connection costs one write and one read a mail. With CHUNKING all of a mail is one
write, and nothing follows it before its reply: a second BDAT behind one whose recipient is refused would meet
a remote in the middle of the first one's transaction.

Its one important property is to know how far each mail got when the connection breaks: in doubt from the
moment the end of data was given to the socket, whether or not it left the machine, since nobody can tell.

What can go wrong besides refusals: a reply may come unasked (the connection is given up, for replies would be
paired with the wrong command), come early (before the end of data: the mail is refused, nothing is in doubt)
or never (each wait has a limit). A mail of which nothing was answered when the connection ended goes back to
the owner, who tries another one: the remote closed this one while it was idle, or because of the mail before.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from pgmail.domain.reply import Phase, Reply, Result
from pgmail.transport.base import Withheld
from pgmail.transport.commands import Extensions, refused_here
from pgmail.transport.relay_config import Timeouts
from pgmail.transport.replies import RawReply, ReplyParser, lost, shown
from pgmail.transport.transaction import BLOCK_BYTES, Owner, Step, Transaction
from pgmail.transport.watch import Watch

_BODY = Phase.BODY  # read often, and slow to get at on Python 3.11, as are those of Step
_WAIT, _SPEAK, _DONE = Step.WAIT, Step.SPEAK, Step.DONE

TRUSTED_SECONDS = 1.0
"""So long after its last reply a connection is taken for alive. On one that was idle for longer, a mail by BDAT
is written in two steps: if the remote has closed it meanwhile, it is not in doubt and nobody hears of it."""


def _always() -> bool:
    return True


class Session(asyncio.Protocol):
    """A connection after EHLO, TLS and AUTH; made by `opening.open_session`. Set `owner` before the first mail."""

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
        self._grouped = extensions.pipelining and not extensions.chunking  # commands follow an end of data
        self.pipeline_depth = extensions.capabilities().pipeline_depth
        """How many mails it takes at a time: one on its way and one that is ready to follow."""
        self.welcome = welcome  # the last step of the login and its reply
        self.remote_host = remote_host
        self.tls = tls
        self.mails = 0  # transactions taken
        self.owner: Owner | None = None
        self.guard: Callable[[], bool] = _always
        """Asked right before each end of data; when it says no, the mail ends with `Withheld` and is not sent."""
        self._timeouts = timeouts
        self._limits = timeouts.by_phase()
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._parser = ReplyParser()
        self._line: deque[Transaction] = deque()  # the first one is answered; at most `pipeline_depth`
        self._out: list[bytes] = []  # to be written next
        self._skip = 0  # replies on their way that belong to no mail: to RSET and to a lone dot
        self._heard = self._loop.time()
        self._watch = Watch(self._loop, self._expired)
        self._reading = False  # inside data_received, which writes at its end
        self._later = False  # a write is due when the tasks that were just woken have run
        self._full = False  # the write buffer is above its limit
        self._stir: asyncio.Future[None] | None = None  # of `change`
        self._fault: str | None = None
        self._retiring = False  # takes no more mail, as after a fault
        self._quitting = False
        self._closed: asyncio.Future[None] = self._loop.create_future()
        # Resume only when all of it left the process: then the end of data follows at once and a break
        # before it is known to be one.
        transport.set_write_buffer_limits(high=BLOCK_BYTES, low=0)
        transport.set_protocol(self)

    # --- what the owner uses ---

    @property
    def usable(self) -> bool:
        """Tell whether another mail may be tried on this connection."""
        return not self._retiring and not self._transport.is_closing()

    @property
    def closed(self) -> bool:
        """Tell whether the socket is closed."""
        return self._closed.done()

    @property
    def carried(self) -> int:
        """How many mails are in line."""
        return len(self._line)

    @property
    def about_to_write(self) -> bool:
        """Tell whether it writes when the tasks that were just woken have run, whatever it is given until then."""
        return self._later

    @property
    def has_place(self) -> bool:
        """Tell whether `take` may be called. Nothing queues up behind a body that its own task writes."""
        line = self._line
        if self._retiring or len(line) >= self.pipeline_depth:
            return False
        return not line or line[-1].dotted or not line[-1].careful

    def take(self, mail: Transaction) -> None:
        """Carry a mail; there must be a place. Its `done` is set, or the owner's `stale` called, in any case.

        A careful mail's task waits for its `ready` and, if that is true, calls `careful.carry`.
        """
        self.mails += 1
        mail.begin(self, self.mails)
        refusal = refused_here(mail.envelope, self.extensions)
        if refusal is not None:
            mail.settle(Result(phase=Phase.MAIL, reply=refusal, remote_host=self.remote_host, tls=self.tls))
            return
        self._line.append(mail)
        if not (self._reading or self._later):
            self._push(restart=False)

    def abandon(self, mail: Transaction) -> None:
        """Let go of a mail that nobody waits for any more. What of it was said makes the connection useless.

        Without its end of data the remote must throw it away when the connection goes (RFC 5321, section
        4.1.1.4). If another mail's end of data is unanswered, that answer is waited for first.
        """
        if mail not in self._line:
            return
        if not mail.written:
            self._line.remove(mail)
            self._push(restart=False)
            self._freed()
        elif mail is self._line[0]:
            self._fail("the mail was abandoned")
        else:
            self._retiring = True

    async def quit(self) -> None:
        """Say QUIT, wait a little for the answer, close. Returns when the socket is closed."""
        if self.usable:
            self._quitting = self._retiring = True
            self._transport.write(b"QUIT\r\n")
            with suppress(TimeoutError):
                async with asyncio.timeout(self._timeouts.quit):
                    await asyncio.shield(self._closed)
        self._transport.abort()
        await asyncio.shield(self._closed)

    # --- what `careful.carry` uses, for the first mail in line ---

    def write(self, octets: bytes | memoryview) -> None:
        """Write a part of the body, which has its own time limit."""
        self._transport.write(octets)
        self._time()

    @property
    def congested(self) -> bool:
        """Tell whether the network is slower than we are."""
        return self._full

    async def change(self) -> None:
        """Wait until a reply came, all that was written was taken, or the connection is lost."""
        self._stir = self._loop.create_future()
        try:
            await self._stir
        finally:
            self._stir = None

    def end(self, mail: Transaction, octets: bytes) -> None:
        """Write the end of data, and with it the commands of the mail behind."""
        mail.end = octets
        self._push()
        self._freed()

    # --- writing ---

    def _push(self, *, restart: bool = True) -> None:
        """Write all that may be written now, at once.

        `restart`: something else may be waited for first than before, with a time limit of its own.
        """
        self._later = False
        line, out = self._line, self._out
        now = self._loop.time()
        if line:
            if self._transport.is_closing():
                self._fail("the connection is closed", gone=True)
                return
            head = line[0]
            try:
                if head.written:
                    if not head.owed:
                        head.go_on(self.extensions, out)
                # A BDAT behind a RSET that fails could go out in the name of the mail before.
                elif not self._skip or self._grouped:
                    head.open(self.extensions, out, now, trusted=now - self._heard < TRUSTED_SECONDS)
            except Withheld as why:
                out.clear()
                head.fail(why)
                self._fail(str(why))
                return
            if head.dotted and self._grouped and len(line) > 1:
                line[1].open(self.extensions, out, now, trusted=True)
        if out:
            octets = b"".join(out)
            out.clear()
            self._transport.write(octets)
        if restart or not self._watch.waiting:
            self._time()

    # --- waiting ---

    def _time(self) -> None:
        """Start the time limit of whatever is waited for first."""
        line = self._line
        if self._skip:
            limit = self._timeouts.command
        elif line and (line[0].owed or (self._full and line[0].phase is _BODY)):
            limit = self._limits[line[0].phase]
        else:
            self._watch.rest()
            return
        self._watch.wait(limit, self._loop.time())

    def _expired(self, seconds: float) -> None:
        what = "the network took no data" if self._full else "no reply"
        self._fail(f"{what} for {seconds:g} s")

    def _wake(self) -> None:
        if self._stir is not None and not self._stir.done():
            self._stir.set_result(None)

    # --- what a reply leads to ---

    def _follow(self, mail: Transaction, step: Step) -> None:
        """Do what the first mail in line asks for; what is to be written is, by `_push`, a little later."""
        if step is _SPEAK:
            if mail.ready is not None and mail.phase is _BODY and not mail.ready.done():
                mail.ready.set_result(True)
            return
        if step is not _DONE:
            if step is Step.DROP:
                said = mail.reply.code if mail.reply is not None else 0
                self._fail(f"the remote said {said}, which ends the connection")
                return
            if step is Step.NONSENSE:
                self._fail(mail.nonsense)
                return
            lone = step is Step.LONE_DOT
            self._out.append(b".\r\nRSET\r\n" if lone else b"RSET\r\n")
            self._skip += 2 if lone else 1
        line = self._line
        line.popleft()
        mail.settle(mail.result(None, self._loop.time()))
        if line and line[0].done.done() and line[0].written:
            self._fail("the mail was abandoned")
        else:
            self._freed()

    def _aside(self, raw: RawReply) -> None:
        """Take a reply that belongs to no mail."""
        if self._quitting:
            self._transport.close()
        elif not self._skip:
            self._fail(f"the remote said {raw.code}, unasked", gone=True)
        else:
            self._skip -= 1
            if raw.code == 421 or (self._skip == 0 and raw.code >= 300):
                self._fail("the connection could not be reset", gone=True)

    def _fail(self, why: str, *, gone: bool = False) -> None:
        """Give the connection up. `gone`: the remote ended it (no timeout, no nonsense), maybe while it was idle."""
        if self._fault is None:
            self._fault = why
        self._retiring = True
        self._transport.abort()
        self._watch.rest()
        mails = list(self._line)
        self._line.clear()
        self._out.clear()
        now = self._loop.time()
        for place, mail in enumerate(mails):
            result = mail.result(self._fault, now)
            if self.owner is not None and (place or mail.may_go_elsewhere(gone=gone)):
                self.owner.stale(mail, result)
            else:
                mail.settle(result)
        self._wake()

    def _freed(self) -> None:
        if self.owner is not None and self._fault is None:
            self.owner.freed(self)

    # --- called by the event loop ---

    def data_received(self, data: bytes) -> None:
        """Take octets of the remote: replies awaited, replies to skip, or a farewell."""
        line, chunking = self._line, self.extensions.chunking
        self._heard = self._loop.time()
        self._reading = True
        before = self.mails
        ended = False
        replies = self._parser.feed(data)
        left = len(replies)
        for raw in replies:
            left -= 1
            if not line or self._skip:
                self._aside(raw)
            else:
                mail = line[0]
                if mail.owed:
                    step = mail.answered(raw, chunking=chunking)
                elif mail.written and mail.phase is _BODY:
                    step = mail.early(raw)
                else:
                    self._aside(raw)
                    break
                if step is _WAIT or (step is _SPEAK and mail.ready is None):
                    continue
                if step is _DONE and chunking and left and replies[-1].code != 421:
                    # Nothing follows a mail by BDAT before its reply, hence a reply was too many, and there is
                    # no 354 to tell which: what was taken for the verdict may be about the recipient.
                    mail.reply, mail.nonsense = None, "more replies than commands"
                    step = Step.NONSENSE
                self._follow(mail, step)
                ended = ended or step is _DONE
            if self._fault is not None:
                break
        self._reading = False
        if self._parser.fault is not None:
            self._fail(self._parser.fault)
        elif ended and not chunking and len(line) == 1 and before == self.mails:
            # Whoever got the result may have another mail: its commands can travel with this one's body.
            self._later = True
            self._loop.call_soon(self._push_later)
        elif self._fault is None:
            # Octets that complete no reply buy no time: a remote that drips them would be waited for forever.
            self._push(restart=bool(replies))
        self._wake()

    def _push_later(self) -> None:
        if self._later:
            self._push()

    def pause_writing(self) -> None:
        """Note that the network is slower than we are."""
        self._full = True

    def resume_writing(self) -> None:
        """Note that all was taken."""
        self._full = False
        self._time()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end of the connection and why."""
        text = "the remote closed the connection" if exc is None else lost(exc)
        if self._parser.partial:
            text += f" in the middle of a reply: {shown(self._parser.partial)!r}"
        self._fail(text, gone=True)
        self._watch.cancel()
        if not self._closed.done():
            self._closed.set_result(None)
        if self.owner is not None:
            self.owner.gone(self)
