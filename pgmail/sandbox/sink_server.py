"""The server's side of SMTP for the sink: one `asyncio.Protocol` per connection (RFC 5321, server).

It knows PIPELINING, SIZE, 8BITMIME, SMTPUTF8, ENHANCEDSTATUSCODES, and STARTTLS and AUTH where the sink has a
certificate or a user. Every step can be answered by the sink's rules. It is strict where laxity hides faults
of the client: commands out of order are refused, and only CRLF.CRLF ends a message.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING, Any

from pgmail.domain.reply import Phase
from pgmail.sandbox.sink_parse import PATH, Login, declared_size, lines_of, message_id_of, unstuffed
from pgmail.sandbox.sink_rules import Answer, Asked

if TYPE_CHECKING:
    from pgmail.sandbox.sink import Sink

_MAX_LINE = 4096
_GO_AHEAD = b"354 Go ahead\r\n"


class SinkConnection(asyncio.Protocol):
    """One connection. Replies to what came in one piece are written in one piece."""

    def __init__(self, sink: Sink, number: int) -> None:
        self._sink = sink
        self._number = number
        self._transport: Any = None
        self._in = bytearray()
        self._out: list[bytes] = []
        self._waiting: asyncio.TimerHandle | None = None  # a tarpit holds the next step back
        self._deaf = False  # hung, or TLS is being agreed on
        self._over_tls = False
        self._user: str | None = None
        self._login: Login | None = None  # AUTH goes on
        self._greeted = False
        self._sender: str | None = None
        self._recipients: list[str] = []
        self._in_data = False
        self._body_seen = False
        self._searched = 0  # octets of the message known to hold no end of data
        self._too_big = False
        self._verbs = {
            b"EHLO": self._ehlo,
            b"HELO": self._helo,
            b"STARTTLS": self._starttls,
            b"AUTH": self._auth,
            b"MAIL": self._mail,
            b"RCPT": self._rcpt,
            b"DATA": self._data,
            b"RSET": self._rset,
            b"NOOP": self._noop,
            b"QUIT": self._quit,
        }

    # --- called by the event loop ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet; TLS, if it is implicit, stands already."""
        self._transport = transport
        self._over_tls = transport.get_extra_info("sslcontext") is not None
        self._sink.opened(self)
        self._step(Phase.GREETING, b"", f"220 {self._sink.hostname} ESMTP sink ready")
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - it does not matter why
        """Forget what was under way: without its end of data a mail does not count."""
        self._deaf = True
        if self._waiting is not None:
            self._waiting.cancel()
        self._sink.closed(self)

    def data_received(self, data: bytes) -> None:
        """Take octets and answer all the steps they complete."""
        self._in += data
        if not self._deaf and self._waiting is None:
            self._run()

    def abort(self) -> None:
        """End the connection from the sink's side, at once."""
        if self._transport is not None:
            self._transport.abort()

    # --- the loop over what was received ---

    def _run(self) -> None:
        while self._in and not self._deaf and self._waiting is None:
            if self._in_data:
                if not self._message():
                    break
                continue
            end = self._in.find(b"\n")
            if end < 0:
                if len(self._in) > _MAX_LINE:
                    self._in.clear()
                    self._say("500 5.5.6 Line too long")
                break
            line = bytes(self._in[:end]).rstrip(b"\r")
            del self._in[: end + 1]
            if len(line) > _MAX_LINE:
                self._say("500 5.5.6 Line too long")
            elif self._login is not None:
                self._login_step(line)
            else:
                self._command(line)
        self._flush()

    def _command(self, line: bytes) -> None:
        verb, _, rest = line.partition(b" ")
        handler = self._verbs.get(verb.upper())
        if handler is None:
            self._say("500 5.5.1 Command unrecognized")
        else:
            handler(line, rest)

    # --- commands ---

    def _ehlo(self, line: bytes, _rest: bytes) -> None:
        self._greeted = True
        self._forget()
        sink = self._sink
        offers = [sink.hostname, "PIPELINING", f"SIZE {sink.max_bytes}", "8BITMIME", "SMTPUTF8"]
        offers.append("ENHANCEDSTATUSCODES")
        if sink.tls is not None and not self._over_tls:
            offers.append("STARTTLS")
        if sink.user is not None:
            offers.append("AUTH PLAIN LOGIN")
        kept = [offers[0], *(offer for offer in offers[1:] if offer.partition(" ")[0] not in sink.without)]
        self._step(Phase.EHLO, line, "250 " + "\n".join(kept))

    def _helo(self, line: bytes, _rest: bytes) -> None:
        self._greeted = True
        self._forget()
        self._step(Phase.EHLO, line, f"250 {self._sink.hostname}")

    def _starttls(self, line: bytes, _rest: bytes) -> None:
        if self._sink.tls is None or self._over_tls:
            self._say("502 5.5.1 STARTTLS is not available")
        elif self._step(Phase.STARTTLS, line, "220 2.0.0 Ready to start TLS"):
            self._deaf = True
            self._in.clear()  # RFC 3207, section 6: nothing said in the clear counts afterwards
            self._flush()
            self._sink.spawn(self._upgrade())

    async def _upgrade(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            secured = await loop.start_tls(self._transport, self, self._sink.tls_context(), server_side=True)
        except (OSError, EOFError):
            # The client did not like the certificate, or went away.
            self._transport.abort()
            self._sink.closed(self)  # a loop may not tell of a connection that never came to be
            return
        self._transport = secured
        self._over_tls = True
        self._greeted = False
        self._forget()
        self._deaf = False
        self._run()

    def _auth(self, line: bytes, rest: bytes) -> None:
        if self._sink.user is None:
            self._say("502 5.5.1 AUTH is not available")
        elif self._user is not None:
            self._say("503 5.5.1 Already authenticated")
        elif self._step(Phase.AUTH, line, ""):
            mechanism, _, first = rest.partition(b" ")
            self._login = Login(mechanism, self._sink.user, self._sink.password or "")
            self._login_step(first or None)

    def _login_step(self, said: bytes | None) -> None:
        if self._login is not None:
            reply = self._login.step(said)
            self._say(reply)
            if not reply.startswith("334"):
                self._user = self._sink.user if reply.startswith("235") else None
                self._login = None

    def _mail(self, line: bytes, rest: bytes) -> None:
        found = PATH.fullmatch(rest)
        if not self._greeted:
            self._say("503 5.5.1 EHLO first")
        elif self._sink.user is not None and self._user is None:
            self._say("530 5.7.0 Authentication Required")
        elif self._sender is not None:
            self._say("503 5.5.1 Sender already specified")
        elif found is None:
            self._say("501 5.1.7 Bad sender address syntax")
        elif (size := declared_size(found.group(2))) > self._sink.max_bytes:
            self._say(f"552 5.3.4 Message size {size} exceeds the limit of {self._sink.max_bytes}")
        else:
            sender = found.group(1).decode("utf-8", "replace")
            if self._step(Phase.MAIL, line, "250 2.1.0 OK", sender):
                self._sender = sender

    def _rcpt(self, line: bytes, rest: bytes) -> None:
        found = PATH.fullmatch(rest)
        if self._sender is None:
            self._say("503 5.5.1 MAIL first")
        elif found is None or not found.group(1):
            self._say("501 5.1.3 Bad recipient address syntax")
        else:
            recipient = found.group(1).decode("utf-8", "replace")
            if self._step(Phase.RCPT, line, "250 2.1.5 OK", self._sender, recipient):
                self._recipients.append(recipient)

    def _data(self, line: bytes, _rest: bytes) -> None:
        if self._sender is None:
            self._say("503 5.5.1 MAIL first")
        elif not self._recipients:
            self._say("554 5.5.1 No valid recipients")
        else:
            answer = self._ask_all(Phase.DATA, line)
            if answer is None:
                self._out.append(_GO_AHEAD)
                self._begin_data()
            elif self._act(answer) and answer.text.startswith("354"):
                self._begin_data()

    def _begin_data(self) -> None:
        self._in_data = True
        self._body_seen = self._too_big = False
        self._searched = 0

    def _rset(self, _line: bytes, _rest: bytes) -> None:
        self._forget()
        self._say("250 2.0.0 Flushed")

    def _noop(self, _line: bytes, _rest: bytes) -> None:
        self._say("250 2.0.0 OK")

    def _quit(self, _line: bytes, _rest: bytes) -> None:
        self._act(Answer(text="221 2.0.0 Bye", after="close"))

    # --- the message ---

    def _message(self) -> bool:
        """Look for the end of data; tell whether it came."""
        if not self._body_seen:
            self._body_seen = True
            answer = self._ask_all(Phase.BODY, b"")
            if answer is not None and (not self._act(answer) or self._waiting is not None):
                return False
        if self._in.startswith(b".\r\n"):
            source, after = b"", 3
        else:
            at = self._in.find(b"\r\n.\r\n", max(0, self._searched - 4))
            if at < 0:
                self._searched = len(self._in)
                if len(self._in) > self._sink.max_bytes * 2:
                    self._too_big = True
                    del self._in[:-4]
                    self._searched = len(self._in)
                return False
            source, after = bytes(self._in[: at + 2]), at + 5
        del self._in[:after]
        self._in_data = False
        self._end_of_data(unstuffed(source))
        return True

    def _end_of_data(self, source: bytes) -> None:
        if self._too_big or len(source) > self._sink.max_bytes:
            self._forget()
            self._say("552 5.3.4 Message too big for system")
            return
        sink, sender, recipients = self._sink, self._sender or "", self._recipients
        message_id = message_id_of(source)
        answer: Answer | None = None
        for recipient in recipients:
            asked = Asked(
                phase=Phase.DOT,
                connection=self._number,
                sender=sender,
                recipient=recipient,
                message_id=message_id,
                source=source,
                tries=sink.count_try(sender, recipient, message_id),
            )
            answer = answer or sink.answer(asked)
        replied = answer is None or answer.text.startswith("2")
        if replied if answer is None or answer.store is None else answer.store:
            for recipient in recipients:
                sink.store(message_id, sender, recipient, source, replied=replied)
        self._forget()
        if answer is None:
            self._say(f"250 2.0.0 OK: queued as {sink.total:08X}")
        else:
            self._act(answer)

    def _forget(self) -> None:
        self._sender = None
        self._recipients = []
        self._in_data = False

    # --- answers ---

    def _step(self, phase: Phase, line: bytes, usual: str, sender: str = "", recipient: str = "") -> bool:
        """Ask the rules, else say what is usual. Tells whether the step succeeded."""
        answer = self._sink.answer(
            Asked(phase=phase, connection=self._number, command=line, sender=sender, recipient=recipient)
        )
        if answer is None:
            if usual:
                self._say(usual)
            return True
        return self._act(answer) and answer.text.startswith("2")

    def _ask_all(self, phase: Phase, line: bytes) -> Answer | None:
        for recipient in self._recipients:
            asked = Asked(
                phase=phase,
                connection=self._number,
                command=line,
                sender=self._sender or "",
                recipient=recipient,
            )
            answer = self._sink.answer(asked)
            if answer is not None:
                return answer
        return None

    def _say(self, text: str) -> None:
        self._out.append(lines_of(text))

    def _act(self, answer: Answer) -> bool:
        """Do what `answer` says, later if it has a delay; tell whether the connection goes on."""
        if answer.delay_seconds:
            self._flush()
            loop = asyncio.get_running_loop()
            self._waiting = loop.call_later(answer.delay_seconds, self._late, answer)
            self._transport.pause_reading()
            return answer.after == "go"
        if answer.raw is not None:
            self._out.append(answer.raw)
        elif answer.text:
            self._say(answer.text)
        if answer.after == "go":
            return True
        self._deaf = True
        self._flush()
        if answer.after == "hang":
            self._transport.pause_reading()
        elif answer.after == "close":
            self._transport.close()
        elif answer.after == "reset":
            # With a linger time of 0 the kernel sends RST in place of FIN.
            sock = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()
        return False

    def _late(self, answer: Answer) -> None:
        self._waiting = None
        self._transport.resume_reading()
        if self._act(Answer(text=answer.text, raw=answer.raw, after=answer.after)):
            self._run()

    def _flush(self) -> None:
        if self._out:
            self._transport.write(b"".join(self._out))
            self._out.clear()
