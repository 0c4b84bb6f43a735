"""What is said for one mail: MAIL and RCPT with their parameters, the message with its dots doubled. No I/O.

Also what must not be said: a mail that the remote, by its own EHLO reply, cannot take is refused here with
the reply it would have given, so that it bounces with a clear text in place of arriving mangled.
"""

from __future__ import annotations

import re
from io import IncrementalNewlineDecoder

import msgspec

from pgmail.domain.reply import Envelope, Reply

_UNSAFE = re.compile(r"[\x00-\x1f\x7f]")  # in an address it would end the command line


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a relay said it takes, as others ask for it. `size`: octets of the biggest mail, None without a limit."""

    eightbit: bool
    smtputf8: bool
    pipelining: bool
    size: int | None = None
    chunking: bool = False

    @property
    def pipeline_depth(self) -> int:
        """How many mails a session takes at a time: one on its way and, where it can be, one ready to follow."""
        return 2 if self.pipelining or self.chunking else 1


class Extensions(msgspec.Struct, frozen=True, kw_only=True):
    """What the remote offered in its last EHLO reply. `size` is in octets, None when it names no limit."""

    pipelining: bool = False
    chunking: bool = False
    eightbit: bool = False
    smtputf8: bool = False
    size_offered: bool = False
    size: int | None = None

    @classmethod
    def from_ehlo(
        cls, offered: dict[str, str], *, pipelining: bool = True, chunking: bool = True
    ) -> Extensions:
        """Read keywords (lower case) with their parameters. What is given as False is not used if offered."""
        size = offered.get("size", "").strip()
        return cls(
            pipelining=pipelining and "pipelining" in offered,
            chunking=chunking and "chunking" in offered,
            eightbit="8bitmime" in offered,
            smtputf8="smtputf8" in offered,
            size_offered="size" in offered,
            # RFC 1870, section 4: zero means no fixed limit.
            size=int(size) if size.isdecimal() and size.isascii() and int(size[:20]) > 0 else None,
        )

    def capabilities(self) -> Capabilities:
        """Return the part of it that is of use outside this package."""
        return Capabilities(
            eightbit=self.eightbit,
            smtputf8=self.smtputf8,
            pipelining=self.pipelining,
            size=self.size,
            chunking=self.chunking,
        )


def refused_here(envelope: Envelope, offered: Extensions) -> Reply | None:
    """Refuse what this remote cannot take, before anything is said. Codes of RFC 6531, 6152 and 1870."""
    sender, recipient, body = envelope.sender, envelope.recipient, envelope.body
    # Most addresses are printable, which is known sooner than what the pattern finds.
    if not (sender.isprintable() and recipient.isprintable()) and (
        _UNSAFE.search(sender) or _UNSAFE.search(recipient)
    ):
        return Reply(553, "an address has control characters", "5.1.3")
    # A lone CR or LF may be read as the end of data by some server down the line ("SMTP smuggling").
    if not _ends_lines_well(body):
        return Reply(554, "the message has a bare CR or LF", "5.6.0")
    if not offered.smtputf8 and _needs_utf8(envelope):
        return Reply(553, "the relay does not offer SMTPUTF8, which this email needs", "5.6.7")
    if envelope.eightbit and not offered.eightbit:
        return Reply(554, "the relay does not offer 8BITMIME, which this email needs", "5.6.3")
    if offered.size is not None and len(body) > offered.size:
        return Reply(552, f"the email has {len(body)} octets, the relay takes {offered.size}", "5.3.4")
    return None


def commands(envelope: Envelope, offered: Extensions) -> tuple[bytes, bytes]:
    """Return the MAIL and the RCPT command, each with its CRLF."""
    # RFC 1870: the size is without doubled dots and end of data.
    options = f" SIZE={len(envelope.body)}" if offered.size_offered else ""
    utf8 = _needs_utf8(envelope)
    if envelope.eightbit or (utf8 and offered.eightbit):
        options += " BODY=8BITMIME"
    if utf8:
        options += " SMTPUTF8"
    mail = f"MAIL FROM:<{envelope.sender}>{options}\r\n"
    return mail.encode(), f"RCPT TO:<{envelope.recipient}>\r\n".encode()


def stuffed(body: bytes) -> tuple[bytes, bytes]:
    """Double the dots at the start of lines (RFC 5321, 4.5.2). Returns the message and its end of data.

    The body has no bare CR or LF, hence a line starts after each CRLF and nowhere else.
    """
    if body.rfind(b"\r\n.") >= 0:  # from the end it takes half the time
        body = body.replace(b"\r\n.", b"\r\n..")
    if body.startswith(b"."):
        body = b"." + body
    return body, b".\r\n" if body.endswith(b"\r\n") or not body else b"\r\n.\r\n"


def _ends_lines_well(body: bytes) -> bool:
    """Tell whether each CR and LF of a body belongs to a CRLF."""
    # The decoder of text files notes which line ends it met: a quarter of the time of counting the three kinds.
    seen = IncrementalNewlineDecoder(None, translate=False)
    seen.decode(body.decode("latin-1"), final=True)
    return seen.newlines is None or seen.newlines == "\r\n"


def _needs_utf8(envelope: Envelope) -> bool:
    return envelope.smtputf8 or not (envelope.sender.isascii() and envelope.recipient.isascii())
