"""One email, ready to be assembled into MIME: everything literal, nothing left to evaluate. No I/O."""

from __future__ import annotations

from datetime import datetime

import msgspec


class Mailbox(msgspec.Struct, frozen=True):
    """An address as shown in a header. `address` has its domain in A-labels; `name` may be any text."""

    address: str
    name: str | None = None


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """An attachment. With `content_id` it is inline, referred to by `cid:` from the HTML (RFC 2392)."""

    filename: str
    content_type: str
    body: bytes
    content_id: str | None = None


class Mail(msgspec.Struct, frozen=True, kw_only=True):
    """A rendered email. `text` and `html` are bodies; one may be None, not both.

    `message_id` comes without angle brackets. `date` is aware. `headers` are the sender's own, checked before.
    """

    message_id: str
    date: datetime
    sender: Mailbox
    to: tuple[Mailbox, ...] = ()
    cc: tuple[Mailbox, ...] = ()
    reply_to: tuple[Mailbox, ...] = ()
    subject: str = ""
    text: str | None = None
    html: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    parts: tuple[Part, ...] = ()
