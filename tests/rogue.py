"""An SMTP server that behaves, but for one fault at one moment; it keeps book of what it took.

    rogue = Rogue(Strike(Phase.RCPT, FAULTS["reset"], mail=2), offers=PIPELINING)
    port = await open_script(rogue.serve)

It strikes once: in place of its reply in a phase, for the mail whose sender is `m2@...` where the phase is
that of a mail. What a fault does not end goes on as if nothing had happened, so that a client which uses a
connection it should have given up is found out: by `taken`, what this server said yes to or meant to.
"""

import asyncio
import re
import socket
import ssl
import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from pgmail.domain.reply import Envelope, Phase
from tests.fix_smtp import an_envelope

PLAIN = ()
PIPELINING = ("PIPELINING",)
CHUNKING = ("CHUNKING",)
BOTH = ("PIPELINING", "CHUNKING")

RSET, QUIT, HANDSHAKE = "rset", "quit", "handshake"  # phases that a `Result` does not know


class Gone(Exception):  # noqa: N818 - an outcome
    """The connection is over."""


class Wire(NamedTuple):
    """One connection, as a fault sees it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def say(self, octets: bytes) -> None:
        self.writer.write(octets)
        await self.writer.drain()

    async def wait_for_end(self) -> None:
        """Say nothing more; return, as `Gone`, when the client has left."""
        while await self.reader.read(65536):
            pass
        raise Gone

    async def close(self) -> None:
        self.writer.close()
        raise Gone

    async def reset(self) -> None:
        raw = self.writer.get_extra_info("socket")
        if raw is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()
        raise Gone


class Fault(NamedTuple):
    """`act(wire, usual)` stands in for the reply `usual`.

    `means`: "broken" (no reply to go by), "harmless" (the reply comes after all), "4xx", "5xx", "421".
    `gone`: the remote ended the connection. `slow`: it ends by the client's time limit.
    """

    act: Callable[[Wire, bytes], Awaitable[None]]
    means: str = "broken"
    gone: bool = False
    slow: bool = False


class Strike(NamedTuple):
    phase: Phase | str
    fault: Fault
    mail: int = 0  # 0: any


def _says(octets: bytes, means: str = "broken") -> Fault:
    async def act(wire: Wire, _usual: bytes) -> None:
        await wire.say(octets)

    return Fault(act, means)


def _says_and(
    octets: bytes, then: Callable[[Wire], Awaitable[None]], means: str = "broken", **more: bool
) -> Fault:
    async def act(wire: Wire, _usual: bytes) -> None:
        if octets:
            await wire.say(octets)
        await then(wire)

    return Fault(act, means, **more)


async def _drip(wire: Wire, _usual: bytes) -> None:
    """A reply that never ends, an octet at a time: something always comes before any limit."""
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(wire.wait_for_end())
        while not reading.done():
            for octet in b"250-x\r\n":
                wire.writer.write(bytes([octet]))
                await asyncio.sleep(0.01)


async def _flood(wire: Wire, _usual: bytes) -> None:
    """A reply that never ends, as fast as it is taken."""
    sent = 0
    while sent < MOST_TAKEN:
        await wire.say(b"250-flood\r\n" * 5000)
        sent += 55_000
    raise AssertionError(f"the client took {sent} octets of one reply")


MOST_TAKEN = 60_000_000  # the buffers of two sockets, with much to spare


async def _in_pieces(wire: Wire, usual: bytes) -> None:
    for octet in usual:
        await wire.say(bytes([octet]))
        await asyncio.sleep(0)


async def _in_many_lines(wire: Wire, usual: bytes) -> None:
    code = usual[:3]
    await wire.say((code + b"-x\r\n") * 3000 + usual)


async def _twice_coded(wire: Wire, usual: bytes) -> None:
    await wire.say(usual[:3] + b"-one thing\r\n559 another\r\n")


async def _one_too_many(wire: Wire, usual: bytes) -> None:
    await wire.say(usual + b"250 2.0.0 and once more\r\n")


async def _wrong_class(wire: Wire, usual: bytes) -> None:
    await wire.say(b"250 2.0.0 not 354\r\n" if usual.startswith(b"354") else b"354 not for that\r\n")


def _half(then: Callable[[Wire], Awaitable[None]], **more: bool) -> Fault:
    async def act(wire: Wire, usual: bytes) -> None:
        await wire.say(usual[: len(usual) // 2])
        await then(wire)

    return Fault(act, **more)


FAULTS: dict[str, Fault] = {
    "silence": _says_and(b"", Wire.wait_for_end, slow=True),
    "half a line, silence": _half(Wire.wait_for_end, slow=True),
    "drip": Fault(_drip, slow=True),
    "close": _says_and(b"", Wire.close, gone=True),
    "reset": _says_and(b"", Wire.reset, gone=True),
    "half a line, close": _half(Wire.close, gone=True),
    "flood": Fault(_flood),
    "100 kB line": _says(b"250 " + b"x" * 100_000 + b"\r\n"),
    "100 kB without a line": _says(b"x" * 100_001),
    "binary": _says(bytes(range(256)) + b"\r\n"),
    "no code": _says(b"well, yes\r\n"),
    "code 000": _says(b"000 what\r\n"),
    "code 100": _says(b"100 what\r\n"),
    "code 999": _says(b"999 what\r\n"),
    "an empty line": _says(b"\r\n"),
    "two codes": Fault(_twice_coded),
    "wrong class": Fault(_wrong_class),
    "4xx": _says(b"451 4.3.0 later\r\n", "4xx"),
    "5xx": _says(b"554 5.7.1 no\r\n", "5xx"),
    "421": _says(b"421 4.3.2 closing\r\n", "421"),
    "421, close": _says_and(b"421 4.3.2 closing\r\n", Wire.close, "421"),
    "an octet at a time": Fault(_in_pieces, "harmless"),
    "3,000 lines": Fault(_in_many_lines, "harmless"),
}


ONE_TOO_MANY = Fault(_one_too_many)
"""A reply that nothing was asked for; what it means depends on where it comes."""


def a_mail(number: int, **changes: object) -> Envelope:
    """The mail that `Strike.mail` means by `number`."""
    return an_envelope(id=f"m{number}@example.com", sender=f"m{number}@example.com", **changes)


class Rogue:
    """Serves any number of connections, like a server of good manners but for the strike."""

    def __init__(
        self,
        strike: Strike | None = None,
        *,
        offers: tuple[str, ...] = BOTH,
        tls: ssl.SSLContext | None = None,
        login: bool = False,
        refuse: bool = False,
        closes_after: int = 0,
        farewell: bytes = b"",
        on_strike: Callable[[], object] = lambda: None,
    ) -> None:
        """`refuse`: the first mail's recipient is nobody.

        `closes_after`: it hangs up on a connection after so many mails, with `farewell` behind the last reply.
        """
        self.taken: Counter[str] = Counter()  # by mail: "m1"
        self.connections = 0
        self.mails_in_clear = 0
        self.taken_after_strike = 0  # on the struck connection, mails that were begun after it
        self.struck = False
        self._strike, self._offers, self._tls, self._login = strike, offers, tls, login
        self._refuse, self._on_strike = refuse, on_strike
        self._closes_after, self._farewell = closes_after, farewell

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        connection = _Connection(self, Wire(reader, writer))
        try:
            await connection.run()
        except* (Gone, ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass

    async def answer(self, wire: Wire, phase: Phase | str, usual: bytes, mail: str) -> bool:
        """Reply, or strike. True if the strike took the reply's place and ended it."""
        strike = self._strike
        hit = strike is not None and not self.struck and strike.phase == phase
        if not hit or (strike.mail and mail != f"m{strike.mail}"):
            await wire.say(usual)
            return False
        self.struck = True
        self._on_strike()
        await strike.fault.act(wire, usual)
        return True


class _Connection:
    def __init__(self, rogue: Rogue, wire: Wire) -> None:
        self._rogue, self._wire = rogue, wire
        self._mail = ""
        self._sender = self._recipient = False
        self._served = 0
        self._secure = False
        self._broken = False  # the strike hit this connection, before the mail at hand

    async def run(self) -> None:
        await self._answer(Phase.GREETING, b"220 rogue\r\n")
        while line := await self._wire.reader.readline():
            await self._command(line.strip())

    async def _answer(self, phase: Phase | str, usual: bytes) -> bool:
        return await self._rogue.answer(self._wire, phase, usual, self._mail)

    async def _command(self, line: bytes) -> None:
        rogue, verb = self._rogue, line[:4].upper()
        match verb:
            case b"EHLO":
                await self._ehlo()
            case b"STAR":
                await self._starttls()
            case b"AUTH":
                await self._answer(Phase.AUTH, b"235 2.7.0 in\r\n")
            case b"MAIL":
                rogue.mails_in_clear += not self._secure
                found = re.search(rb"<(m\d+)@", line)
                self._mail = found[1].decode() if found else ""
                self._broken = rogue.struck and self._struck_here
                struck = await self._answer(Phase.MAIL, b"250 2.1.0 ok\r\n")
                self._note(struck=struck)
                self._sender = not struck or self._means("harmless", "broken")
            case b"RCPT" if not self._sender:
                await self._wire.say(b"503 5.5.1 MAIL first\r\n")
            case b"RCPT":
                if rogue._refuse and self._mail == "m1":
                    await self._wire.say(b"550 5.1.1 nobody\r\n")
                    return
                struck = await self._answer(Phase.RCPT, b"250 2.1.5 ok\r\n")
                self._note(struck=struck)
                self._recipient = not struck or self._means("harmless", "broken")
            case b"DATA" if not self._recipient:
                await self._wire.say(b"503 5.5.1 RCPT first\r\n")
            case b"DATA":
                struck = await self._answer(Phase.DATA, b"354 go\r\n")
                self._note(struck=struck)
                if not struck or self._means("harmless"):
                    await self._after_354()
            case b"BDAT":
                await self._chunk(line)
            case b"RSET":
                self._sender = self._recipient = False
                self._note(struck=await self._answer(RSET, b"250 2.0.0 flushed\r\n"))
            case b"QUIT":
                self._note(struck=await self._answer(QUIT, b"221 2.0.0 bye\r\n"))
                await self._wire.close()
            case _:
                await self._wire.say(b"500 5.5.2 what\r\n")

    async def _ehlo(self) -> None:
        words = ["rogue", "8BITMIME", *self._rogue._offers]
        if self._rogue._tls is not None and not self._secure:
            words.append("STARTTLS")
        if self._rogue._login:
            words.append("AUTH PLAIN")
        lines = [f"250-{word}\r\n" for word in words[:-1]] + [f"250 {words[-1]}\r\n"]
        phase = "ehlo after tls" if self._secure else Phase.EHLO
        await self._answer(phase, "".join(lines).encode())

    async def _starttls(self) -> None:
        rogue, wire = self._rogue, self._wire
        assert rogue._tls is not None
        if await self._answer(Phase.STARTTLS, b"220 2.0.0 go\r\n") and not self._means("harmless"):
            return
        strike = rogue._strike
        if strike is not None and strike.phase == HANDSHAKE and not rogue.struck:
            await wire.reader.readexactly(5)  # the client's hello is on its way
            rogue.struck = True
            rogue._on_strike()
            await strike.fault.act(wire, b"\x16\x03\x03\x00\x7a\x02\x00\x00\x76\x03\x03")
            await wire.wait_for_end()
        await wire.writer.start_tls(rogue._tls)
        self._secure = True

    async def _after_354(self) -> None:
        strike = self._rogue._strike
        if strike is not None and strike.phase is Phase.BODY and not self._rogue.struck:
            # Behind its 354, of the body nothing read: what is broken here is not in doubt.
            self._note(struck=await self._answer(Phase.BODY, b""))
            await self._wire.wait_for_end()
        body = await self._wire.reader.readuntil(b"\r\n.\r\n")
        assert body.count(b"Message-ID: ") == 1
        await self._end_of_data()

    async def _chunk(self, line: bytes) -> None:
        await self._wire.reader.readexactly(int(line.split()[1]))
        if not self._recipient:
            await self._wire.say(b"503 5.5.1 RCPT first\r\n")
        elif line.endswith(b"LAST"):
            await self._end_of_data()
        else:
            self._note(struck=await self._answer(Phase.BODY, b"250 2.0.0 more\r\n"))

    async def _end_of_data(self) -> None:
        """Take the mail before a word of it is said, unless a refusal is what will be said."""
        rogue, strike = self._rogue, self._rogue._strike
        hit = (
            strike is not None and not rogue.struck and strike.phase is Phase.DOT
            and strike.mail in (0, int(self._mail[1:]))
        )  # fmt: skip
        if not (hit and strike.fault.means in ("4xx", "5xx", "421")):
            rogue.taken[self._mail] += 1
            rogue.taken_after_strike += self._broken
        self._sender = self._recipient = False
        self._served += 1
        last = self._served == rogue._closes_after
        self._note(
            struck=await self._answer(Phase.DOT, b"250 2.0.0 taken\r\n" + (rogue._farewell if last else b""))
        )
        if last:
            await self._wire.close()

    _struck_here = False

    def _note(self, *, struck: bool) -> None:
        self._struck_here = self._struck_here or struck

    def _means(self, *kinds: str) -> bool:
        strike = self._rogue._strike
        return strike is not None and strike.fault.means in kinds
