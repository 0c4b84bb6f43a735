"""What an email looks like: its texts rendered with the recipient's variables, its headers as they go out.

It is rendered as the worker does it, from the same sources, though within tighter bounds and without its files. First
all of it is read (`gather`); opened and rendered it is (`look`) when that transaction is over, however long it takes.
HTML is served by a route of its own into a frame without any right: no scripts, no forms, no network, no origin.

What can go wrong, and is said in words instead: the content was deleted by retention or an erasure; it is sealed and
its key is not in this process; the template's version is gone or fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from litestar import Request, Response, get
from litestar.exceptions import NotFoundException

from pgmail.access.reach import need_reach
from pgmail.dashboard.frame import html as answer_html
from pgmail.dashboard.guard import caller_of, database_of
from pgmail.domain.mail import Mail, Mailbox
from pgmail.errors import KeyMissing, SealBroken, TemplateFault
from pgmail.render.mime import assemble
from pgmail.render.templates import (
    QUICK_SOURCE,
    QUICK_TOKENS,
    Bundle,
    Rendered,
    Source,
    compile_bundle,
    complete,
)
from pgmail.sealing.mail import open_variables
from pgmail.store import emails as store
from pgmail.store import pages, templates
from pgmail.store.keys import Caller
from pgmail.store.tenant import Connection, acting_as

AnyRequest = Request[Any, Any, Any]

MAIL_POLICY = (
    "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'; font-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'self'"
)
SECONDS = 0.2
MAX_CHARS = 2_000_000
MAX_NODES = 20_000
MAX_DEPENDS = 50


class Look(NamedTuple):
    """An email as it looks to one recipient; or `because`, why it cannot be shown. `head` are its header fields."""

    subject: str | None = None
    text: str | None = None
    html: str | None = None
    head: str = ""
    because: str = ""


class Material(NamedTuple):
    """What an email to one recipient is made of, as it is stored: rows of `message` and `recipients`.

    `own` is what is the recipient's own; `bundle` the stored template, None where there is none or it is gone.
    """

    message: Any
    person: Any
    own: pages.Own | None
    bundle: Bundle | None


class Opened(NamedTuple):
    """An email's content, opened where it was sealed; `because` says why it is not all there."""

    content: dict[str, Any]
    because: str = ""


@get("/emails/{id:str}/html/{person:str}", scope="read")
async def show_html(request: AnyRequest) -> Response[str]:
    """The HTML of an email, for its frame."""
    try:
        email, person = (UUID(request.path_params[name]) for name in ("id", "person"))
    except ValueError:
        raise NotFoundException from None
    caller = caller_of(request)
    async with acting_as(database_of(request), caller) as connection:
        await need_reach(connection, caller, [email, person])
        message = await store.message(connection, email)
        people = [row for row in await store.recipients(connection, person) if row.message_id == email]
        if message is None or not people:
            raise NotFoundException
        material = await gather(connection, message, people[0])
    found = await look(request, material, await opened(request, message))
    if found.html is None:
        raise NotFoundException
    return answer_html(found.html, headers={"Content-Security-Policy": MAIL_POLICY})


async def opened(request: AnyRequest, message: Any) -> Opened:
    """Return the content of a row of `message`, opened if this process can."""
    content = msgspec.json.decode(message.content)
    if message.key_id is None:
        kept = any(name in content for name in ("html", "text")) or message.template is not None
        return Opened(content, "" if (kept and "subject" in content) or message.template else _GONE)
    seal = await request.app.state.sealer.of(caller_of(request))
    if seal is None:
        return Opened(content, "It is sealed, and this process has no keys (PGMAIL_SEAL_KEYS).")
    try:
        return Opened(seal.content(message.content, message.key_id, message.id))
    except (KeyMissing, SealBroken) as why:
        return Opened(content, f"It is sealed and cannot be opened here: {why}.")


async def gather(connection: Connection, message: Any, person: Any) -> Material:
    """Read all that an email is made of for one of its recipients."""
    bundle = None
    if message.template is not None:
        bundle = await _bundle(connection, message.template, message.template_version or 0)
    return Material(message, person, await pages.own(connection, person.recipient_id), bundle)


async def look(request: AnyRequest, material: Material, content: Opened) -> Look:
    """Return how an email looks to a recipient, of what was gathered and opened. In no transaction."""
    if content.because:
        return Look(because=content.because)
    message, variables = material.message, content.content.get("variables")
    try:
        mine = await _own(request, material)
        if mine:
            variables = {**(variables or {}), **mine}
        rendered = await _rendered(material, content.content, variables)
    except (KeyMissing, SealBroken) as why:
        return Look(because=f"What is this recipient's own is sealed and cannot be opened here: {why}.")
    except TemplateFault as fault:
        return Look(because=f"It cannot be rendered: {fault}.")
    if rendered is None:
        return Look(because=f"Version {message.template_version} of the template {message.template} is gone.")
    head = _head(request, message, material.person, content.content, rendered)
    return Look(rendered.subject, rendered.text, rendered.html, head)


async def _own(request: AnyRequest, material: Material) -> Mapping[str, Any] | None:
    """A recipient's own variables. Raises KeyMissing and SealBroken."""
    found = material.own
    if found is None or found.variables is None:
        return None
    variables, caller = found.variables, caller_of(request)
    if found.key_id is not None:
        variables = await _unsealed(request, caller, material.message.id, material.person.address, found)
    decoded: Mapping[str, Any] = msgspec.json.decode(variables)
    return decoded


async def _unsealed(request: AnyRequest, caller: Caller, message: UUID, who: str, found: pages.Own) -> bytes:
    seal = await request.app.state.sealer.of(caller)
    if seal is None:
        raise KeyMissing("this process has no keys (PGMAIL_SEAL_KEYS)")
    return open_variables(found.variables or b"", seal.key(found.key_id), caller.tenant_id, message, who)


async def _rendered(
    material: Material, content: Mapping[str, Any], variables: Mapping[str, Any] | None
) -> Rendered | None:
    """The parts of an email; None if its template is gone. Raises TemplateFault."""
    subject = content.get("subject")
    if material.message.template is None:
        source = Source(subject, content.get("text"), content.get("html"))
        if variables is None:
            return await asyncio.to_thread(complete, Rendered(source.subject or "", source.text, source.html))
        bundle = Bundle(source)
    elif material.bundle is None:
        return None
    else:
        main = material.bundle.main
        bundle = Bundle(Source(subject or main.subject, main.text, main.html), material.bundle.others)
    return await asyncio.to_thread(render, bundle, variables or {})


def render(bundle: Bundle, variables: Mapping[str, Any]) -> Rendered:
    """Compile and render within the bounds of a preview. Raises TemplateFault."""
    compiled = compile_bundle(bundle, most_tokens=QUICK_TOKENS, most_source=QUICK_SOURCE)
    return compiled.render(
        variables, seconds=SECONDS, max_chars=MAX_CHARS, max_nodes=MAX_NODES, with_text=True
    )


async def _bundle(connection: Connection, name: str, version: int) -> Bundle | None:
    """A stored template with all that it reaches, in the versions that were pinned when it was published."""
    main = await templates.get(connection, name, version)
    if main is None:
        return None
    others: dict[str, Source] = {}
    wanted: dict[str, int] = dict(main.depends or {})
    while wanted and len(others) < MAX_DEPENDS:
        other, at = wanted.popitem()
        if other not in others:
            row = await templates.get(connection, other, at)
            if row is None:
                return None
            others[other] = Source(row.subject, row.body_text, row.body_html)
            wanted = {**(row.depends or {}), **wanted}  # the pins of the template itself win
    return Bundle(Source(main.subject, main.body_text, main.body_html), others)


def _head(
    request: AnyRequest, message: Any, person: Any, content: Mapping[str, Any], rendered: Rendered
) -> str:
    """The header fields as they go out, but for those that a relay or DKIM adds."""
    personal = message.mode == "personal"
    sender = _box(content["from"])
    domain = request.app.state.message_id_domain or sender.address.rpartition("@")[2]
    mail = Mail(
        message_id=f"{(person.recipient_id if personal else message.id).hex}@{domain}",
        date=max(message.created_at, message.scheduled_at or message.created_at).replace(microsecond=0),
        sender=sender,
        to=(Mailbox(person.rcpt, person.name),) if personal else _boxes(content, "to"),
        cc=_boxes(content, "cc"),
        reply_to=_boxes(content, "reply_to"),
        subject=rendered.subject or "",
        text=rendered.text,
        html=rendered.html,
        headers=tuple((content.get("headers") or {}).items()),
    )
    return assemble(mail).body.partition(b"\r\n\r\n")[0].replace(b"\r\n", b"\n").decode("utf-8", "replace")


def _boxes(content: Mapping[str, Any], name: str) -> tuple[Mailbox, ...]:
    return tuple(_box(item) for item in content.get(name) or ())


def _box(item: Mapping[str, Any]) -> Mailbox:
    return Mailbox(item["address"], item.get("name"))


_GONE = (
    "Its content was deleted, as the retention of its stream or an erasure wanted. What became of it is kept."
)
