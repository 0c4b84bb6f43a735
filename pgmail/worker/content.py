"""What a claimed row needs to become bytes: its recipient, its message, its template. Fetched in batches, cached.

Caches are bounded by bytes, whatever the backlog. A message to many recipients is fetched and, where all get
the same bytes (`envelope` mode), assembled once.
"""

from __future__ import annotations

import asyncio
import hashlib
import mimetypes
from collections import OrderedDict
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
import structlog

from pgmail.domain.mail import Mail, Mailbox, Part
from pgmail.errors import PgmailError, TemplateFault
from pgmail.render.cache import TemplateCache
from pgmail.render.mime import Wire, assemble
from pgmail.render.templates import Bundle, Compiled, Rendered, Source, compile_bundle, complete
from pgmail.store import work
from pgmail.store.database import Database
from pgmail.store.work import Lease, MessageRow, RecipientRow

_log = structlog.get_logger()

CACHE_BYTES = 24 * 1024 * 1024
CACHE_MESSAGES = 2000
CACHE_BUNDLES = 200


class Impossible(PgmailError):  # noqa: N818 - a state of affairs
    """This mail cannot be made by anyone: its asset or template is gone, or a template fails."""


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


class Message:
    """A message in the cache: decoded once, its parts once, its bytes once where all recipients share them."""

    __slots__ = ("content", "fetching", "parts", "row", "shared", "weight")

    def __init__(self, row: MessageRow) -> None:
        self.row = row
        self.content: Content = msgspec.json.decode(row.content, type=Content)
        self.parts: tuple[Part, ...] | None = None if self.content.attachments else ()
        self.shared: Wire | None = None
        self.fetching = asyncio.Lock()  # its attachments are fetched by one slot, for all of them
        self.weight = 0  # as accounted for in the cache

    @property
    def size(self) -> int:
        """Bytes that it keeps in memory, roughly."""
        parts = sum(len(part.body) for part in self.parts or ())
        return len(self.row.content) * 2 + parts + (len(self.shared.body) if self.shared else 0)


class Library:
    """Messages and templates of all tenants that this process works on."""

    def __init__(self, database: Database, message_id_domain: str) -> None:
        self._database = database
        self._domain = message_id_domain
        self._messages: OrderedDict[tuple[int, UUID], Message] = OrderedDict()
        self._bytes = 0
        self._templates = TemplateCache()
        self._bundles: OrderedDict[tuple[object, ...], Bundle] = OrderedDict()

    async def load(self, leases: Sequence[Lease], stream: str) -> dict[UUID, tuple[Message, RecipientRow]]:
        """Fetch what claimed rows of one tenant and stream need. Rows without content are left out."""
        tenant = leases[0].tenant
        wanted = {lease.message_id for lease in leases}
        missing = [id_ for id_ in wanted if (tenant, id_) not in self._messages]
        held: dict[UUID, Message] = {}
        if missing:
            for row in await work.messages(self._database, tenant, missing):
                try:
                    held[row.id] = self._keep(tenant, Message(row))
                except msgspec.DecodeError as error:
                    # One broken row must not end a worker that holds others: it is left out, and so a dead letter.
                    _log.error("message.unreadable", message=str(row.id), error=str(error))
        for id_ in wanted.difference(missing):
            held[id_] = self._messages[tenant, id_]
            self._messages.move_to_end((tenant, id_))
        people = await work.recipients(self._database, tenant, stream, [lease.id for lease in leases])
        by_id = {person.id: person for person in people}
        self._shrink()
        return {
            lease.id: (held[lease.message_id], by_id[lease.id])
            for lease in leases
            if lease.message_id in held and lease.id in by_id
        }

    async def wire(self, tenant: int, message: Message, person: RecipientRow, *, eightbit: bool) -> Wire:
        """Render and assemble. Raises TemplateFault or Impossible where no retry could help."""
        if message.shared is not None and message.shared.eightbit <= eightbit:
            return message.shared
        content, row = message.content, message.row
        async with message.fetching:
            if message.parts is None:
                message.parts = await self._parts(tenant, message)
        rendered = await self._render(tenant, message, person)
        personal = row.mode == "personal"
        unique = person.id if personal else row.id
        domain = self._domain or content.sender.address.rpartition("@")[2]
        wire = assemble(
            Mail(
                message_id=f"{unique.hex}@{domain}",
                date=_seconds(max(row.created_at, row.scheduled_at or row.created_at)),
                sender=content.sender,
                to=(Mailbox(person.rcpt, person.name),) if personal else content.to,
                cc=content.cc,
                reply_to=content.reply_to,
                subject=rendered.subject or "",
                text=rendered.text,
                html=rendered.html,
                headers=tuple(content.headers.items()),
                parts=message.parts,
            ),
            eightbit=eightbit,
        )
        if not personal and row.recipients > 1:
            message.shared = wire
        self._weigh(tenant, message)
        return wire

    async def _render(self, tenant: int, message: Message, person: RecipientRow) -> Rendered:
        content, row = message.content, message.row
        variables = content.variables
        if row.template is not None:
            compiled = await self._stored(tenant, row.template, row.template_version or 0, content.subject)
            variables = variables or {}
        elif variables is None:
            if not person.variables:
                return complete(Rendered(content.subject or "", content.text, content.html))
            variables = {}
            compiled = self._inline(content)
        else:
            compiled = self._inline(content)
        if person.variables:
            variables = {**variables, **msgspec.json.decode(person.variables)}
        return complete(compiled.render(variables))

    def _inline(self, content: Content) -> Compiled:
        source = Source(content.subject, content.text, content.html)
        # Applications send one inline template with many variables: its text is its key.
        key = hashlib.blake2b(msgspec.json.encode(source), digest_size=16).digest()
        return self._templates.get(("inline", key), lambda: compile_bundle(Bundle(source, {})))

    async def _stored(self, tenant: int, name: str, version: int, subject: str | None) -> Compiled:
        key = ("stored", tenant, name, version, subject)
        bundle = self._bundles.get(key)
        if bundle is None:
            bundle = await self._bundle(tenant, name, version, subject)
            self._bundles[key] = bundle
            if len(self._bundles) > CACHE_BUNDLES:
                self._bundles.popitem(last=False)
        else:
            self._bundles.move_to_end(key)
        return self._templates.get(key, lambda: compile_bundle(bundle))

    async def _bundle(self, tenant: int, name: str, version: int, subject: str | None) -> Bundle:
        """A stored template with all that it extends or includes, in the versions pinned when it was published."""
        main, wanted = await self._source(tenant, name, version)
        if subject is not None:
            main = Source(subject, main.text, main.html)  # an email may bring a subject of its own
        others: dict[str, Source] = {}
        while wanted:
            other, at = wanted.popitem()
            if other not in others:
                others[other], more = await self._source(tenant, other, at)
                wanted = more | wanted  # the pins of the template itself win
        return Bundle(main, others)

    async def _source(self, tenant: int, name: str, version: int) -> tuple[Source, dict[str, int]]:
        row = await work.template(self._database, tenant, name, version)
        if row is None:
            raise Impossible(f"template {name} version {version} is gone")
        return Source(row.subject, row.body_text, row.body_html), dict(row.depends)

    async def _parts(self, tenant: int, message: Message) -> tuple[Part, ...]:
        parts = []
        for row in await work.attachments(self._database, tenant, message.row.id):
            if row.body is None:
                raise Impossible(f"asset {row.asset} is gone")
            guess = mimetypes.guess_type(row.filename)[0]
            if guess is None or guess.startswith(("multipart/", "message/")):
                guess = "application/octet-stream"
            parts.append(
                Part(
                    filename=row.filename,
                    content_type=row.content_type or guess,
                    content_id=row.content_id,
                    body=bytes(row.body),
                )
            )
        return tuple(parts)

    def _keep(self, tenant: int, message: Message) -> Message:
        self._messages[tenant, message.row.id] = message
        self._weigh(tenant, message)
        return message

    def _weigh(self, tenant: int, message: Message) -> None:
        """Account for what a message keeps in memory now: parts and shared bytes come after the content."""
        if self._messages.get((tenant, message.row.id)) is message:
            size = message.size
            self._bytes += size - message.weight
            message.weight = size

    def _shrink(self) -> None:
        """Forget the longest unused until the rest is within bounds."""
        while self._messages and (self._bytes > CACHE_BYTES or len(self._messages) > CACHE_MESSAGES):
            _, gone = self._messages.popitem(last=False)
            self._bytes -= gone.weight


def _seconds(moment: datetime) -> datetime:
    return moment.replace(microsecond=0)


__all__ = ["Content", "Impossible", "Library", "Message", "TemplateFault"]
