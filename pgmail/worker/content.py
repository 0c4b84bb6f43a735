"""What a claimed row needs to become bytes: its recipient, its message, its template. Fetched in batches, cached.

Caches are bounded by bytes, whatever the backlog, and so is what is fetched for mail that goes next: where mails are
large only some of a claim are fetched, the others when those have gone. A message to many recipients is fetched
and, where all get the same bytes (`envelope` mode), assembled once.
"""

from __future__ import annotations

import asyncio
import mimetypes
import time
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, cast
from uuid import UUID
from weakref import WeakSet

import msgspec
import structlog

from pgmail.domain.mail import Mail, Mailbox, Part
from pgmail.errors import PgmailError, TemplateFault
from pgmail.render.bounds import MAX_NODES
from pgmail.render.cache import TemplateCache
from pgmail.render.meter import MAX_SOURCES, MAX_TOKENS
from pgmail.render.mime import Wire, assemble
from pgmail.render.templates import (
    MAX_CHARS,
    QUICK_SOURCE,
    QUICK_TOKENS,
    SECONDS,
    Bundle,
    Compiled,
    Rendered,
    Source,
    compile_bundle,
    complete,
)
from pgmail.sealing.mail import open_attachment
from pgmail.seals import Opener
from pgmail.store import work
from pgmail.store.database import Database
from pgmail.store.work import Barred, Lease, MessageRow, RecipientRow
from pgmail.worker.charges import APART, HERE, SLOW, Charges
from pgmail.worker.message import Content, Message, template_key
from pgmail.worker.unsealing import key_of, keys_of, open_rows

_log = structlog.get_logger()

CACHE_BYTES = 24 * 1024 * 1024
CACHE_MESSAGES = 2000
BIG_BYTES = 64 * 1024  # from here on a message counts; a stock of smaller ones is bounded by their number
LITERAL = 30_000  # characters of HTML without variables that nobody keeps account of
HELD_BYTES = 64 * 1024 * 1024  # of messages in memory, by `Message.size`: then no more are fetched
CACHE_BUNDLES = 200


class Bounds(msgspec.Struct, frozen=True):
    """What making one mail here may cost: tokens and characters that are compiled, a render's time and sizes.

    `html` is the longest literal HTML, in characters, of which a text part is made here; None is any.
    """

    tokens: int = MAX_TOKENS
    source: int = MAX_SOURCES
    seconds: float = SECONDS
    max_chars: int = MAX_CHARS
    max_nodes: int = MAX_NODES
    html: int | None = None

    def compile(self, bundle: Bundle) -> Compiled:
        """Compile a bundle within these bounds."""
        return compile_bundle(bundle, most_tokens=self.tokens, most_source=self.source)


QUICK = Bounds(
    tokens=QUICK_TOKENS, source=QUICK_SOURCE, seconds=0.03, max_chars=150_000, max_nodes=5_000, html=300_000
)
"""Between other mail, which waits meanwhile. What needs more is made in a process apart, within `Bounds()`."""

TIGHT = Bounds(tokens=300, source=30_000, seconds=SLOW, max_chars=30_000, max_nodes=1_000, html=60_000)
"""For the first mail of a template, where its tenant has used up what it may of everybody's time (`Charges`)."""


class Impossible(PgmailError):  # noqa: N818 - a state of affairs
    """This mail cannot be made by anyone: its asset or template is gone, or a template fails."""


_decode_variables = msgspec.json.Decoder(dict[str, Any]).decode


class Library:
    """Messages and templates of all tenants that this process works on."""

    def __init__(
        self,
        database: Database,
        message_id_domain: str,
        templates: TemplateCache | None = None,
        *,
        opener: Opener | None = None,
        subject_prefix: str = "",
        bounds: Bounds = Bounds(),  # noqa: B008 - frozen
        charges: Charges | None = None,
    ) -> None:
        """`opener` has the keys of sealed mail; without one it waits for a worker that has them.

        `subject_prefix` leads each subject, as a setting for staging wants it. `charges` keeps account of what
        renders take here; without it nothing is ever `dear`.
        """
        self._charges = charges
        self._bounds = bounds
        self._database = database
        self._opener = opener
        self._domain = message_id_domain
        self.subject_prefix = subject_prefix
        self._messages: OrderedDict[tuple[int, UUID], Message] = OrderedDict()
        self._bytes = 0
        self._big: WeakSet[Message] = WeakSet()  # in memory, whoever has them
        self._templates = TemplateCache() if templates is None else templates
        self._bundles: OrderedDict[Hashable, Bundle] = OrderedDict()

    async def load(
        self, loads: Sequence[tuple[int, str, Sequence[Lease]]]
    ) -> list[dict[UUID, tuple[Message, RecipientRow] | None]]:
        """Fetch what claimed rows need, those of each (tenant, stream), in one round trip.

        Rows without content are left out. None for those that must wait until others are gone from memory.
        """
        missing: list[list[UUID]] = []
        known: list[dict[UUID, Message]] = []  # of each load; held on to, whatever is forgotten meanwhile
        for tenant, _, leases in loads:
            ids = dict.fromkeys([lease.message_id for lease in leases])
            held = self._held_of(tenant, ids) if self._messages else {}
            known.append(held)
            missing.append([id_ for id_ in ids if id_ not in held] if held else list(ids))
        answers, later = await work.contents(
            self._database,
            [
                (tenant, stream, [lease.id for lease in leases], ids)
                for (tenant, stream, leases), ids in zip(loads, missing, strict=True)
            ],
            max(1, HELD_BYTES - self._held()) // 2,  # a message's size is twice its content's
        )
        found: list[dict[UUID, tuple[Message, RecipientRow] | None]] = []
        for (tenant, _, leases), (people, rows), held in zip(loads, answers, known, strict=True):
            barred: dict[UUID, Barred] = {}  # by message, and by recipient
            if any(row.key_id is not None for row in rows) or any(row.key_id is not None for row in people):
                rows, people, barred = await open_rows(self._opener, tenant, leases, rows, people)  # noqa: PLW2901 - opened
            made = [self._made(tenant, row, keep=row.id not in barred) for row in rows]
            if not barred and _in_place(leases, people, made):
                # As nearly all: mails of their own. Python hashes an id itself, and slowly.
                found.append(
                    dict(
                        zip(
                            [lease.id for lease in leases],
                            zip(cast("list[Message]", made), people, strict=True),
                            strict=True,
                        )
                    )
                )
                continue
            held.update((message.row.id, message) for message in made if message is not None)
            by_id = {person.id: person for person in people}
            if barred:
                for lease in leases:
                    why = barred.get(lease.message_id) or barred.get(lease.id)
                    if why is not None and lease.id in by_id:
                        by_id[lease.id] = msgspec.structs.replace(by_id[lease.id], barred=why)
            # An id is hashed by Python: each look-up counts.
            ready: dict[UUID, tuple[Message, RecipientRow] | None] = {}
            for lease in leases:
                message, person = held.get(lease.message_id), by_id.get(lease.id)
                if message is None:
                    continue
                if lease.rescues:
                    message.suspect = not message.cleared
                if person is not None:
                    ready[lease.id] = message, person
            if later:
                ready.update((lease.id, None) for lease in leases if lease.message_id in later)
            found.append(ready)
        self._shrink()
        return found

    def _made(self, tenant: int, row: MessageRow, *, keep: bool) -> Message | None:
        try:
            message = Message(row, self._domain)
        except msgspec.DecodeError as error:
            # One broken row must not end a worker that holds others: it is left out, and so a dead letter.
            _log.error("message.unreadable", message=str(row.id), error=str(error))
            return None
        return self._keep(tenant, message) if keep else message

    def _held_of(self, tenant: int, ids: Iterable[UUID]) -> dict[UUID, Message]:
        """Those of some messages that are in the cache."""
        messages, held = self._messages, {}
        for id_ in ids:
            key = tenant, id_
            message = messages.get(key)
            if message is not None:
                held[id_] = message
                messages.move_to_end(key)
        return held

    @property
    def full(self) -> bool:
        """Whether large messages take up all the memory that they may."""
        return bool(self._big) and self._held() >= HELD_BYTES

    def _held(self) -> int:
        return sum(message.size for message in self._big) if self._big else 0

    def wire_now(self, tenant: int, message: Message, person: RecipientRow, *, eightbit: bool) -> Wire | None:
        """Render and assemble from what is here already; None if something must be fetched: see `wire`.

        Raises TemplateFault where no retry could help.
        """
        shared = message.shared
        if shared is not None and shared.eightbit <= eightbit:
            return shared
        content = message.content
        if message.parts is None:
            return None
        rendered = self._rendered(tenant, message, person)
        if rendered is None:
            return None
        personal = message.personal
        wire = assemble(
            Mail(
                message_id=f"{(person.id if personal else message.row.id).hex}@{message.domain}",
                date=message.date,
                sender=content.sender,
                to=(Mailbox(person.rcpt, person.name),) if personal else content.to,
                cc=content.cc,
                reply_to=content.reply_to,
                subject=self.subject_prefix + (rendered.subject or ""),
                text=rendered.text,
                html=rendered.html,
                headers=message.headers,
                parts=message.parts,
            ),
            eightbit=eightbit,
        )
        if not personal and message.row.recipients > 1:
            message.shared = wire
            self._weigh(tenant, message)
        return wire

    def _rendered(self, tenant: int, message: Message, person: RecipientRow) -> Rendered | None:
        """Render what is here already, and keep account of it; None if its template must be fetched."""
        charges, content, bounds = self._charges, message.content, self._bounds
        literal = message.row.template is None and content.variables is None and not person.variables
        if literal and len(content.html or "") <= LITERAL:
            charges = None
        elif charges is not None and charges.way(tenant, template_key(tenant, message)) != HERE:
            bounds = TIGHT
        if literal and charges is None and content.text is not None:
            return Rendered(content.subject or "", content.text, content.html)  # nothing is made of it
        compiled: Compiled | None = None
        if not literal:
            compiled = message.compiled or self._known(tenant, message, bounds)
            if compiled is None:
                return None
        began = time.thread_time()
        try:
            if compiled is None:
                if bounds.html is not None and content.text is None and len(content.html or "") > bounds.html:
                    raise TemplateFault("too_big", "html", "too long to make a text of between other mail")
                return complete(Rendered(content.subject or "", content.text, content.html))
            variables = content.variables
            if person.variables:
                own = _decode_variables(person.variables)
                variables = {**variables, **own} if variables else own
            return compiled.render(
                variables or {},
                seconds=bounds.seconds,
                max_chars=bounds.max_chars,
                max_nodes=bounds.max_nodes,
                with_text=True,
            )
        finally:
            if charges is not None:
                charges.charge(tenant, template_key(tenant, message), time.thread_time() - began)

    def dear(self, tenant: int, message: Message) -> bool:
        """Whether the time that a message takes here is not its tenant's to use any more: it is made apart."""
        if self._charges is None or message.shared is not None:
            return False
        row, content = message.row, message.content
        if row.template is None and content.variables is None and len(content.html or "") <= LITERAL:
            return False  # literal, unless a recipient has variables, who is charged then
        texts = (content.subject, content.text, content.html)
        plain = row.template is None and not any(text is not None and "{%" in text for text in texts)
        return self._charges.way(tenant, template_key(tenant, message), plain=plain) == APART

    async def wire(self, tenant: int, message: Message, person: RecipientRow, *, eightbit: bool) -> Wire:
        """Fetch attachments and template, then render and assemble.

        Raises TemplateFault or Impossible where no retry could help, and DatabaseAway.
        """
        if message.fetching is None:
            message.fetching = asyncio.Lock()
        async with message.fetching:
            if message.parts is None:
                message.parts = await self._parts(tenant, message)
                self._weigh(tenant, message)
            row = message.row
            if row.template is not None and template_key(tenant, message) not in self._bundles:
                await self._fetch(tenant, row.template, row.template_version or 0, message.content.subject)
        wire = self.wire_now(tenant, message, person, eightbit=eightbit)
        self._shrink()  # attachments came after the message was weighed
        assert wire is not None  # noqa: S101 - all of it was fetched
        return wire

    async def suppressed(self, tenant: int, stream: str, person: RecipientRow) -> str | None:
        """Why a recipient that was loaded a while ago gets no mail by now, or None. Raises DatabaseAway."""
        return await work.suppressed(self._database, tenant, stream, person.address)

    async def sources(self, tenant: int, message: Message) -> Bundle | None:
        """Fetch attachments and a stored template, and neither compile nor render anything here.

        For who does that elsewhere: None where the template is the message's own. Raises Impossible, DatabaseAway.
        """
        if message.parts is None:
            message.parts = await self._parts(tenant, message)
            self._weigh(tenant, message)
        row = message.row
        if row.template is None:
            return None
        if (known := self._bundles.get(template_key(tenant, message))) is not None:
            return known
        return await self._bundle(tenant, row.template, row.template_version or 0, message.content.subject)

    def _known(self, tenant: int, message: Message, bounds: Bounds) -> Compiled | None:
        """The compiled template of a message, if its sources are at hand."""
        row, content, key = message.row, message.content, template_key(tenant, message)
        if row.template is None:
            source = Source(content.subject, content.text, content.html)
            compiled = self._templates.get(key, lambda: self._compile(tenant, Bundle(source, {}), bounds))
            if row.recipients > 1:  # else it would outlive the cache for nothing
                message.compiled = compiled
                self._weigh(tenant, message)
            return compiled
        bundle = self._bundles.get(key)
        if bundle is None:
            return None
        self._bundles.move_to_end(key)
        return self._templates.get(key, lambda: self._compile(tenant, bundle, bounds))

    def _compile(self, tenant: int, bundle: Bundle, bounds: Bounds) -> Compiled:
        """Compile, at the tenant's cost. A template that is compiled once is no slower for it."""
        began = time.thread_time()
        try:
            return bounds.compile(bundle)
        finally:
            if self._charges is not None:
                self._charges.charge_tenant(tenant, time.thread_time() - began)

    async def _fetch(self, tenant: int, name: str, version: int, subject: str | None) -> None:
        """Fetch the sources of a stored template."""
        self._bundles["stored", tenant, name, version, subject] = await self._bundle(
            tenant, name, version, subject
        )
        if len(self._bundles) > CACHE_BUNDLES:
            self._bundles.popitem(last=False)

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
            filename, body = row.filename, bytes(row.body)
            if row.key_id is not None:
                keys = await keys_of(self._opener, tenant, {row.key_id})
                key, names = key_of(keys, row.key_id), message.content.filenames
                body = open_attachment(body, key, tenant, message.row.id, row.position)
                filename = (names[row.position - 1] if row.position <= len(names) else None) or filename
            guess = mimetypes.guess_type(filename)[0]
            if guess is None or guess.startswith(("multipart/", "message/")):
                guess = "application/octet-stream"
            parts.append(
                Part(
                    filename=filename,
                    content_type=row.content_type or guess,
                    content_id=row.content_id,
                    body=body,
                )
            )
        return tuple(parts)

    def _keep(self, tenant: int, message: Message) -> Message:
        if len(message.row.content) * 2 >= BIG_BYTES:  # it has nothing else yet
            self._big.add(message)
        if message.row.recipients == 1:
            return message  # nobody else will ask for it
        self._messages[tenant, message.row.id] = message
        self._weigh(tenant, message)
        return message

    def _weigh(self, tenant: int, message: Message) -> None:
        """Account for what a message keeps in memory now: parts and shared bytes come after the content."""
        if message.parts and message.size >= BIG_BYTES:
            self._big.add(message)
        if self._messages.get((tenant, message.row.id)) is message:
            size = message.size
            self._bytes += size - message.weight
            message.weight = size

    def _shrink(self) -> None:
        """Forget the longest unused until the rest is within bounds."""
        while self._messages and (self._bytes > CACHE_BYTES or len(self._messages) > CACHE_MESSAGES):
            _, gone = self._messages.popitem(last=False)
            self._bytes -= gone.weight


def _in_place(
    leases: Sequence[Lease], people: Sequence[RecipientRow], messages: Sequence[Message | None]
) -> bool:
    """Whether each lease has its own recipient and its own message at its place, and no worker died with any."""
    return len(messages) == len(people) == len(leases) and all(
        person.id is lease.id
        and message is not None
        and message.row.id is lease.message_id
        and not lease.rescues
        for lease, person, message in zip(leases, people, messages, strict=True)
    )


__all__ = ["Content", "Impossible", "Library", "Message", "TemplateFault"]
