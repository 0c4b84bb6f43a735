"""A message as a worker has it in memory: what the sender gave, decoded once, and what is made of it once for all.

What can go wrong: a row that cannot be decoded (`msgspec.DecodeError`); it is left out by whoever reads it.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Hashable
from typing import Any

import msgspec

from pgmail.domain.mail import Mailbox, Part
from pgmail.render.mime import Wire
from pgmail.render.templates import Compiled, Source
from pgmail.store.work import MessageRow


class Content(msgspec.Struct, rename={"sender": "from"}):
    """`message.content`: what the sender gave, normalised. Without `variables` everything is literal."""

    sender: Mailbox
    to: tuple[Mailbox, ...] = ()
    cc: tuple[Mailbox, ...] = ()
    reply_to: tuple[Mailbox, ...] = ()
    subject: str | None = None
    text: str | None = None
    html: str | None = None
    headers: dict[str, str] = {}
    variables: dict[str, Any] | None = None
    attachments: int = 0
    filenames: tuple[str | None, ...] = ()  # of sealed files, in their order


_decode = msgspec.json.Decoder(Content).decode


class Message:
    """A message in the cache: decoded once, its parts once, its bytes once where all recipients share them."""

    __slots__ = (
        "__weakref__", "cleared", "compiled", "content", "date", "domain", "fetching", "headers", "key", "parts",
        "personal", "row", "shared", "suspect", "weight",
    )  # fmt: skip

    def __init__(self, row: MessageRow, message_id_domain: str = "") -> None:
        self.row = row
        self.content: Content = _decode(row.content)
        self.domain = message_id_domain or self.content.sender.address.rpartition("@")[2]
        self.date = row.created_at if row.scheduled_at is None else max(row.created_at, row.scheduled_at)
        self.headers = tuple(self.content.headers.items())
        self.personal = row.mode == "personal"
        self.parts: tuple[Part, ...] | None = None if self.content.attachments else ()
        self.key: Hashable = None  # of its template, once somebody asked
        self.compiled: Compiled | None = None  # of its inline template, if it is for many
        self.shared: Wire | None = None
        self.fetching: asyncio.Lock | None = None  # its attachments are fetched by one slot, for all of them
        self.suspect = False  # a worker died while it held one of its recipients
        self.cleared = False  # one of its recipients was made apart, and well
        self.weight = 0  # as accounted for in the cache

    def clear(self) -> None:
        """It was made apart, and well: a suspect no longer, whoever else of its recipients was rescued."""
        self.suspect, self.cleared = False, True

    @property
    def size(self) -> int:
        """Bytes that it keeps in memory, roughly."""
        parts = sum(len(part.body) for part in self.parts) if self.parts else 0
        compiled = self.compiled.cost_bytes if self.compiled else 0
        return len(self.row.content) * 2 + parts + compiled + (len(self.shared.body) if self.shared else 0)


def template_key(tenant: int, message: Message) -> Hashable:
    """The key of a message's template: a stored one's name and version, or the text of its own."""
    if message.key is None:
        row, content = message.row, message.content
        if row.template is None:
            # Applications send one inline template with many variables: its text is its key.
            source = Source(content.subject, content.text, content.html)
            digest = hashlib.blake2b(msgspec.json.encode(source), digest_size=16).digest()
            message.key = "inline", digest
        else:
            message.key = "stored", tenant, row.template, row.template_version or 0, content.subject
    return message.key
