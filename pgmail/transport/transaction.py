"""One mail on its way over a session: what is still to be said for it, and what its replies mean. No I/O.

The session pairs each reply with the mail it belongs to and asks `answered` what follows. The phases move with
the replies (RFC 5321, section 3.3); whether the end of data was given to the socket is kept apart from that
(`dotted`), because with CHUNKING it is written before MAIL was answered.

What can go wrong is decided here: a refusal stands, whatever is said after it, with one exception. If MAIL was
refused, RCPT accepted and the data too, the remote may have sent something in another mail's name or nothing:
nobody can tell, and the mail is in doubt.
"""

from __future__ import annotations

import asyncio
import time
from enum import Enum, auto
from typing import TYPE_CHECKING, Protocol

from pgmail.domain.reply import Envelope, Phase, Reply, Result
from pgmail.transport.base import OnDot, TooLate, Withheld
from pgmail.transport.commands import Extensions, commands, stuffed
from pgmail.transport.replies import RawReply, shown

if TYPE_CHECKING:
    from pgmail.transport.session import Session

BLOCK_BYTES = 65_536
"""Bigger mails are written in blocks of this size, each with its own time limit (RFC 5321, 4.5.3.2.5)."""


# An attribute of an enumeration costs as much as ten local names on Python 3.11; these are read per reply.
_MAIL, _RCPT, _DATA, _BODY, _DOT = Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.BODY, Phase.DOT


class Step(Enum):
    """What a session does after a reply to a mail."""

    WAIT = auto()  # for the next reply, or for the mail's own task
    SPEAK = auto()  # the next command or the body is due
    DONE = auto()  # the verdict is there and the remote is back at the start
    RESET = auto()  # refused: the remote has to be brought back to the start
    LONE_DOT = auto()  # refused, yet it awaits a message: end that first (RFC 2920, section 3.1)
    DROP = auto()  # the verdict is there and the connection must not be used on
    NONSENSE = auto()  # `nonsense` says what; the connection cannot be trusted


_WAIT, _SPEAK, _DONE = Step.WAIT, Step.SPEAK, Step.DONE


class Transaction:
    """One envelope from `deliver` to its result. A mail that went `stale` is begun again with `begin`."""

    __slots__ = (
        "body", "careful", "done", "dotted", "end", "envelope", "nonsense", "number", "on_dot", "owed", "phase",
        "ready", "refusal", "reply", "session", "started", "taken", "tries", "written",
    )  # fmt: skip

    def __init__(self, envelope: Envelope, on_dot: OnDot | None, loop: asyncio.AbstractEventLoop) -> None:
        self.envelope = envelope
        self.on_dot = on_dot
        self.done: asyncio.Future[Result] = loop.create_future()
        self.careful = on_dot is not None or len(envelope.body) > BLOCK_BYTES
        """Its body is written by its own task (`careful.carry`), with flow control, and `on_dot` awaited."""
        self.ready: asyncio.Future[bool] | None = loop.create_future() if self.careful else None
        """For a careful mail: True when the body may be written, False when it came to an end before that."""
        self.session: Session | None = None
        self.written = False
        self.tries = 0  # connections that turned out to be closed under it
        self.body = b""  # of a mail that is not careful: dots doubled, unless it goes by BDAT
        self.end: bytes | None = None  # the end of data, once it may be written

    def begin(self, session: Session, number: int) -> None:
        """Start from nothing on a session, as the `number`-th mail of its connection."""
        self.session = session
        self.number = number
        self.phase = _MAIL  # the reply awaited; BODY: none, or those to chunks
        self.written = False  # MAIL was given to the socket
        self.started = 0.0  # when, in the event loop's time
        self.owed = 0  # replies awaited for what was written
        self.taken = False  # RCPT was accepted
        self.dotted = False  # the end of data was given to the socket
        self.refusal: tuple[Phase, RawReply] | None = None  # the first one, of a reply before that to the end
        self.reply: RawReply | None = None  # the verdict, if it is a reply
        self.nonsense = ""
        self.end = None

    # --- what is said ---

    def open(self, offered: Extensions, out: list[bytes], now: float, *, trusted: bool) -> None:
        """Say the first commands: MAIL alone, or with PIPELINING all up to where a reply is needed.

        On a connection that is `trusted` to be alive, that is all of a mail that goes by BDAT.
        """
        if self.written or self.done.done():  # cancelled: its task is about to take it out of the line
            return
        envelope = self.envelope
        if envelope.not_after is not None and time.monotonic() > envelope.not_after:
            self.fail(TooLate())
            return
        self.written = True
        self.started = now
        mail, rcpt = commands(envelope, offered)
        out.append(mail)
        if not self.careful:
            if offered.chunking:
                self.body, self.end = b"BDAT %d LAST\r\n" % len(envelope.body), envelope.body
            else:
                self.body, self.end = stuffed(envelope.body)
        if not offered.pipelining:
            self.owed = 1
            return
        out.append(rcpt)
        if not offered.chunking:
            out.append(b"DATA\r\n")
            self.owed = 3
            return
        self.owed = 2
        if trusted and not self.careful:
            self._finish(out)

    def go_on(self, offered: Extensions, out: list[bytes]) -> None:
        """Say the next thing, all commands so far being answered well; nothing while the body is not ready."""
        if self.done.done():
            return
        if self.phase is _BODY:
            if self.end is not None:
                self._finish(out)
                self.phase = _DOT
            return
        out.append(commands(self.envelope, offered)[1] if self.phase is _RCPT else b"DATA\r\n")
        self.owed = 1

    def _finish(self, out: list[bytes]) -> None:
        """Say what is left, with the end of data: from here on the mail may be in doubt. Raises Withheld."""
        if self.session is not None and not self.session.guard():
            raise Withheld("the end of data is not allowed now")
        out.append(self.body)
        out.append(self.end or b"")
        self.body = b""
        self.dotted = True
        self.owed += 1

    # --- what is answered ---

    def answered(self, raw: RawReply, *, chunking: bool) -> Step:
        """Take the next reply of those `owed`; move on to what it allows."""
        self.owed -= 1
        code = raw.code
        phase = self.phase
        if phase is _MAIL:
            self.phase = _RCPT
            good = code < 300
        elif phase is _RCPT:
            self.taken = good = code < 300
            self.phase = _DOT if self.dotted else _BODY if chunking else _DATA
        elif phase is _DATA:
            good = code == 354
            if good:
                self.phase = _BODY
        else:
            good = code < 300
        if self.refusal is None:
            if good:
                if phase is _DOT:
                    self.reply = raw
                    return _DONE
                return _WAIT if self.owed else _SPEAK
            if code < 400:
                self.phase = phase
                what = "the end of data" if phase is _DOT else phase.upper()
                self.nonsense = f"unexpected reply to {what}: {code} {shown(raw.text)}"
                return Step.NONSENSE
            self.refusal = (phase, raw)
        self.reply = self.refusal[1]
        if code == 421 or phase is _BODY:
            # RFC 5321, section 3.8: the remote is closing the channel. And after a chunk was refused, what is
            # under way are more chunks.
            return Step.DROP
        if self.owed:
            return _WAIT
        return self._refused(raw, good=good, chunking=chunking)

    def _refused(self, last: RawReply, *, good: bool, chunking: bool) -> Step:
        """Decide how to go on after a refusal, once all that was asked is answered."""
        if self.phase is _DOT:
            if self.adrift and good:
                self.nonsense = f"MAIL was refused, and the data accepted: {last.code} {shown(last.text)}"
                return Step.NONSENSE
            # The end of data ends a transaction, taken or not (RFC 5321, section 4.1.1.4); for a refused BDAT
            # servers differ.
            return Step.RESET if chunking else _DONE
        if self.phase is _BODY and not chunking:
            # It said 354. A lone dot sends nothing if nobody is to get it; else only the connection's end
            # makes sure of that.
            return Step.DROP if self.taken else Step.LONE_DOT
        return Step.RESET

    @property
    def adrift(self) -> bool:
        """Tell whether a mail whose MAIL was refused may go out all the same: its recipient was not."""
        return self.dotted and self.taken and self.refusal is not None and self.refusal[0] is _MAIL

    def early(self, raw: RawReply) -> Step:
        """Take a reply that nothing was asked for, while the body is under way."""
        if raw.code < 400:
            self.nonsense = f"reply before the end of data: {raw.code} {shown(raw.text)}"
            return Step.NONSENSE
        self.reply = raw
        self.refusal = (_BODY, raw)
        # What follows would still be read as message text: this connection is of no more use.
        return Step.DROP

    # --- what came of it ---

    def may_go_elsewhere(self, *, gone: bool) -> bool:
        """Tell, when the connection breaks, whether the first mail in line may go over another one unnoticed.

        It may if nothing was said of it, or if it found its connection closed (`gone`) or closing (421) before
        anything of it was answered. Not so on a new connection: what happens there would happen again.
        """
        if self.number == 1:
            return False
        if not self.written:
            return True
        if self.refusal is not None:
            return self.refusal[0] is _MAIL and self.refusal[1].code == 421
        return gone and self.phase is _MAIL and not self.dotted

    def result(self, error: str | None, now: float) -> Result:
        """Say what came of it, by what is known now. `error` counts if there is no reply to go by."""
        session = self.session
        reply: Reply | None = None
        phase = _DOT if self.dotted else self.phase
        if self.reply is not None and not (error and self.adrift):
            # That the remote hung up after a refusal changes nothing for this mail.
            reply = self.reply.parsed()
            error = None
            if self.refusal is not None:
                phase = self.refusal[0]
        return Result(
            phase=phase,
            reply=reply,
            error=error,
            remote_host=session.remote_host if session else None,
            tls=session.tls if session else None,
            ms=round((now - self.started) * 1000) if self.written else 0,
        )

    def settle(self, result: Result) -> None:
        """Give the result to whoever waits for it. Nobody does after a cancellation."""
        if not self.done.done():
            self.done.set_result(result)
        if self.ready is not None and not self.ready.done():
            self.ready.set_result(False)

    def fail(self, fault: BaseException) -> None:
        """Raise a fault of ours where somebody waits for the result."""
        if not self.done.done():
            self.done.set_exception(fault)
        if self.ready is not None and not self.ready.done():
            self.ready.set_result(False)


class Owner(Protocol):
    """Whoever hands mails to a session. All of it is called by the session, at once and not to raise."""

    def freed(self, session: Session) -> None:
        """A place became free: the session may be given a mail, now or later."""

    def stale(self, mail: Transaction, result: Result) -> None:
        """Nothing of the mail was answered; it may go elsewhere, else it comes to `result`."""

    def gone(self, session: Session) -> None:
        """The socket is closed. Nothing is called after that."""
