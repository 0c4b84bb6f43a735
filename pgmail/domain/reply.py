"""What a remote server said, and what one transport attempt came to. Plain values; no I/O."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Phase(StrEnum):
    """How far an attempt got. Order is the order of an SMTP session (RFC 5321, section 3)."""

    CONNECT = "connect"
    GREETING = "greeting"
    EHLO = "ehlo"
    STARTTLS = "starttls"
    AUTH = "auth"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"  # the DATA command, before its 354
    BODY = "body"  # message bytes on the wire, end of data not yet written
    DOT = "dot"  # end of data written; its reply decides. Without a reply the attempt is in doubt.


_DOT = Phase.DOT  # looked up once: for each mail, members of an enumeration are dear


class Reply(msgspec.Struct, frozen=True):
    """An SMTP reply. `code` 200..599, `enhanced` as in RFC 3463 ("5.1.1") or None, `text` without both."""

    code: int
    text: str
    enhanced: str | None = None


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt for one recipient.

    Accepted: `phase` DOT and a 2xx reply. Refused: a 4xx or 5xx reply in `phase`.
    Broken: `reply` None and `error` says how (timeout, reset, name not found, certificate).
    In doubt: broken in phase DOT; the remote may have taken the mail.
    """

    phase: Phase
    reply: Reply | None = None
    error: str | None = None
    remote_host: str | None = None  # "mx.example.org:25"
    tls: str | None = None  # "TLSv1.3 TLS_AES_256_GCM_SHA384"; None is plain text
    ms: int = 0  # from the first command of this mail to the verdict, milliseconds

    @property
    def accepted(self) -> bool:
        """Tell whether the next hop took responsibility."""
        reply = self.reply
        return self.phase is _DOT and reply is not None and 200 <= reply.code < 300

    @property
    def in_doubt(self) -> bool:
        """Tell whether the remote may have accepted although no reply was read."""
        return self.phase is Phase.DOT and self.reply is None


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """What a transport needs for one recipient. `body` has CRLF line ends, is not dot-stuffed, ends in CRLF."""

    sender: str  # "" is the null reverse-path
    recipient: str  # one RCPT per transaction; domain in A-labels
    body: bytes
    smtputf8: bool = False  # an address or header needs RFC 6531
    eightbit: bool = False  # the body has octets over 127 (8BITMIME, RFC 6152)
    not_after: float | None = None  # it begins by then (monotonic, seconds) or not at all: TooLate
