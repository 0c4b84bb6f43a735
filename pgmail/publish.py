"""Saving and publishing templates: compile first, then store. The API and the command line share this.

A template that is published compiles, everything it extends or includes is published too, and three things
are stored with it: its source, the variables without which a rendering certainly fails (`required`, which SQL
checks when mail is enqueued) and the versions of what it leans on (`depends`, so that a later change of a
layout does not change mail that is queued).

What can go wrong: a draft may lean on a layout that is not published yet. It is saved when its syntax is
right, and refused when somebody publishes it. Faults are `Refused`: `invalid_template` at the part (`/html`),
`unknown_template` at the part that names a template that is not published.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial

import msgspec

from pgmail.errors import Refused, TemplateFault
from pgmail.render.templates import Bundle, Source, check_source, referenced
from pgmail.store import published as store
from pgmail.store.database import Database
from pgmail.store.published import Lent, Version

Read = Callable[[Iterable[str]], Awaitable[dict[str, Version]]]
MAX_DEPENDS = 50  # templates that one may lean on, directly or through others


class Checked(msgspec.Struct, frozen=True):
    """What the compiler found: names that a rendering certainly needs, and the versions leaned on."""

    required: frozenset[str]
    depends: Mapping[str, int]


class Saved(msgspec.Struct, frozen=True):
    """A version that was saved or published."""

    name: str
    version: int
    published: bool
    required: tuple[str, ...]
    depends: Mapping[str, int]


async def save(
    database: Database | Lent,
    name: str,
    *,
    subject: str | None,
    text: str | None,
    html: str | None,
    publish: bool = False,
) -> Saved:
    """Check a source and store it as the template's next version, published if asked.

    `database` is a pool, or a connection whose transaction this becomes part of. Raises `Refused`.
    """
    if text is None and html is None:
        raise Refused("missing_field", "/text", "text or html is required")
    async with _lent(database) as connection:
        source = Source(subject=subject, text=text, html=html)
        found = await _check(connection, name, source, draft=not publish)
        version = await store.save(
            connection,
            name,
            subject=subject,
            text=text,
            html=html,
            required=found.required,
            depends=found.depends,
            publish=publish,
        )
    return Saved(name, version, publish, tuple(sorted(found.required)), found.depends)


async def publish(database: Database | Lent, name: str, version: int | None = None) -> Saved:
    """Publish a stored version, the newest unless one is named. It is checked again, against today's layouts.

    Raises `Refused`: `unknown_template` at `/name` (404) if there is no such version.
    """
    async with _lent(database) as connection:
        if version is None:
            version = await store.newest(connection, name)
        stored = None if version is None else await store.stored(connection, name, version)
        if stored is None:
            which = "" if version is None else f" in version {version}"
            raise Refused("unknown_template", "/name", f"no template is named {name!r}{which}", 404)
        source = Source(subject=stored.subject, text=stored.text, html=stored.html)
        found = await _check(connection, name, source, draft=False)
        await store.publish(connection, name, stored.version, required=found.required, depends=found.depends)
    return Saved(name, stored.version, True, tuple(sorted(found.required)), found.depends)


async def check(
    database: Database | Lent,
    name: str,
    *,
    subject: str | None = None,
    text: str | None = None,
    html: str | None = None,
) -> Checked:
    """Check a source as publishing it would, and store nothing. Raises `Refused`."""
    async with _lent(database) as connection:
        return await _check(connection, name, Source(subject=subject, text=text, html=html), draft=False)


async def bundle(read: Read, name: str, source: Source) -> Bundle:
    """Return a source with the published templates that it leans on; nothing is compiled or stored.

    `read` returns the newest published versions of templates by name, each time in a transaction of its own: a
    source may take its time to be read, and no transaction is open meanwhile. Raises TemplateFault where it cannot
    be read or leans on what is not published, and Refused where it leans on itself or on too much.
    """
    return Bundle(source, (await _gather(read, name, source, draft=True))[0])


async def _check(connection: Lent, name: str, source: Source, *, draft: bool) -> Checked:
    try:
        others, depends = await _gather(partial(store.published, connection), name, source, draft=draft)
        # Up to a second: others go on meanwhile.
        return Checked(await asyncio.to_thread(check_source, source, others), depends)
    except TemplateFault as fault:
        if fault.kind == "unknown_template":
            if draft:
                return Checked(frozenset(), {})
            raise Refused("unknown_template", f"/{fault.part}", fault.message) from fault
        where = f"line {fault.line}: " if fault.line else ""
        raise Refused("invalid_template", f"/{fault.part}", where + fault.message) from fault


async def _gather(
    read: Read, name: str, source: Source, *, draft: bool
) -> tuple[dict[str, Source], dict[str, int]]:
    """Read the published versions of everything that a source leans on, directly or through others."""
    others: dict[str, Source] = {}
    depends: dict[str, int] = {}
    seen: set[str] = set()
    wanted = await asyncio.to_thread(referenced, source)  # it reads the whole source
    while wanted:
        seen |= wanted
        if name in wanted:
            raise Refused("invalid_template", "", f"the template {name!r} leans on itself")
        if len(seen) > MAX_DEPENDS:
            raise Refused("invalid_template", "", f"it leans on more than {MAX_DEPENDS} other templates")
        found = await read(wanted)
        if not draft and (missing := sorted(wanted - found.keys())):
            raise Refused("unknown_template", "", f"no published template is named {missing[0]!r}")
        for version in found.values():
            others[version.name] = Source(subject=version.subject, text=version.text, html=version.html)
            depends[version.name] = version.version
        wanted = await asyncio.to_thread(_leaned, [others[key] for key in found]) - seen
    return others, depends


def _leaned(sources: Iterable[Source]) -> frozenset[str]:
    return frozenset(name for source in sources for name in referenced(source))


@asynccontextmanager
async def _lent(database: Database | Lent) -> AsyncIterator[Lent]:
    """Lend a connection: the caller's own, or one of the pool in a transaction of its own."""
    if isinstance(database, Database):
        async with database.connection() as connection, connection.transaction():
            yield connection
    else:
        yield database
