"""Templates: a list, an editor with a preview, versions and what differs between two of them, publishing.

What can go wrong: a template with a mistake. What is saved is refused with its part and line, and what was typed stays
in the form. Two people at once get two versions.
"""

from __future__ import annotations

import asyncio
import difflib
import json
from typing import Any, NamedTuple

from litestar import Request, Response, get, post

from pgmail import publish as publishing
from pgmail.access.reach import need_live
from pgmail.dashboard.frame import done, link, page
from pgmail.dashboard.guard import SEE, caller_of, database_of, may
from pgmail.dashboard.manage.questions import MANAGE, Ask, Given, act, ask, given_of, once
from pgmail.errors import Refused
from pgmail.store import templates as store
from pgmail.store.tenant import acting_as

AnyRequest = Request[Any, Any, Any]

HOME = "/dashboard/templates"
PER_PAGE = 50
PARTS = (("subject", "Subject"), ("text", "Text"), ("html", "HTML"))
COLUMNS = {"subject": "subject", "text": "body_text", "html": "body_html"}
MOST_LINES = 4_000  # of a part, that two versions are compared over
MOST_CHARS = 400_000


class Difference(NamedTuple):
    """What differs in one part: pairs of ` `, `+`, `-` or `@` and a line; None for what is too long to compare."""

    label: str
    lines: list[tuple[str, str]] | None


@get("/templates", scope=SEE)
async def show_templates(request: AnyRequest) -> Response[Any]:
    """The page: each template once."""
    given, caller = await given_of(request), caller_of(request)
    after = given.one("after") or None
    async with acting_as(database_of(request), caller) as connection:
        rows = await store.listing(connection, limit=PER_PAGE + 1, after=after)
    return page(
        request, "manage/templates.html", title="Templates", rows=rows[:PER_PAGE], more=len(rows) > PER_PAGE,
        after=after, may_act=may(caller, MANAGE),
    )  # fmt: skip


@get("/templates/edit", scope=SEE)
async def show_template(request: AnyRequest) -> Response[Any]:
    """One version in the editor, with all others beside it; without a name, an empty one."""
    given = await given_of(request)
    name, version = given.one("name"), _version(given.one("version"))
    if not name:
        return await _editor(request, "", None, {})
    async with acting_as(database_of(request), caller_of(request)) as connection:
        row = await store.get(connection, name, version)
        newest = await store.versions(connection, name) if row is not None else []
        if row is not None and version is None and newest[0].version != row.version:
            row = await store.get(connection, name, newest[0].version)  # one goes on where somebody left off
    if row is None:
        raise Refused("not_found", "/name", f"no such template: {name[:128]!r}", 404)
    texts = {part: getattr(row, column) or "" for part, column in COLUMNS.items()}
    return await _editor(request, name, row, texts)


@post("/templates/edit", scope=MANAGE, status_code=200)
async def save_template(request: AnyRequest) -> Response[Any]:
    """Save what is in the editor as a new version, as a draft or published."""
    given, caller = await given_of(request), caller_of(request)
    name, live = given.one("name"), given.one("then") == "publish"
    texts = {part: given.raw(part) for part in COLUMNS}
    try:
        need_live(caller)
        async with acting_as(database_of(request), caller) as connection:
            await once(connection, given)
            saved = await publishing.save(
                connection, name, **{part: text or None for part, text in texts.items()}, publish=live
            )
    except Refused as refused:
        async with acting_as(database_of(request), caller) as connection:
            row = (
                await store.get(connection, name, _version(given.one("version")))
                if given.one("version")
                else None
            )
        return await _editor(request, name, row, texts, refused, variables=given.raw("variables"))
    said = f"Version {saved.version} of {name} is published: new mail gets it." if live else (
        f"Version {saved.version} of {name} is saved as a draft; nobody gets it before it is published."
    )  # fmt: skip
    return done(request, said, link(f"{HOME}/edit", name=name, version=saved.version))


@get("/templates/publish", scope=MANAGE)
async def ask_publish(request: AnyRequest) -> Response[Any]:
    """Ask whether a version is the one."""
    return ask(request, _publishing(await given_of(request)))


@post("/templates/publish", scope=MANAGE, status_code=200)
async def publish(request: AnyRequest) -> Response[Any]:
    """Publish a stored version."""
    given, caller = await given_of(request), caller_of(request)

    async def deed() -> str:
        async with acting_as(database_of(request), caller) as connection:
            saved = await publishing.publish(connection, given.one("name"), _version(given.one("version")))
        return f"Version {saved.version} of {saved.name} is published."

    return await act(request, _publishing(given), deed)


@get("/templates/compare", scope=SEE)
async def compare(request: AnyRequest) -> Response[Any]:
    """What differs between two versions, part by part."""
    given = await given_of(request)
    name, old, new = given.one("name"), _version(given.one("old")), _version(given.one("new"))
    async with acting_as(database_of(request), caller_of(request)) as connection:
        before = await store.get(connection, name, old)
        after = await store.get(connection, name, new)
        versions = await store.versions(connection, name)
    if before is None or after is None:
        raise Refused("not_found", "/version", f"{name[:128]!r} has no such version", 404)
    found = await asyncio.to_thread(_differences, before, after)
    return page(
        request, "manage/template_compare.html", title=f"{name}: version {before.version} and {after.version}",
        name=name, old=before, new=after, versions=versions, differences=found,
    )  # fmt: skip


async def _editor(
    request: AnyRequest,
    name: str,
    row: Any,
    texts: dict[str, str],
    error: Refused | None = None,
    *,
    variables: str = "",
) -> Response[Any]:
    caller = caller_of(request)
    async with acting_as(database_of(request), caller) as connection:
        versions = await store.versions(connection, name) if name else []
    published = max((version.version for version in versions if version.state == "published"), default=None)
    needed = list(row.required or ()) if row is not None else []
    return page(
        request, "manage/template.html", title=name or "New template", status_code=422 if error else 200,
        name=name, row=row, texts={part: texts.get(part, "") for part in COLUMNS}, parts=PARTS, versions=versions,
        published=published, error=error, may_act=may(caller, MANAGE), required=needed,
        variables=variables or json.dumps(dict.fromkeys(needed, "…"), indent=2, ensure_ascii=False),
    )  # fmt: skip


def _publishing(given: Given) -> Ask:
    name, version = given.one("name"), given.one("version")
    return Ask(
        title=f"Publish version {version} of {name}?",
        action=f"{HOME}/publish",
        button="Publish",
        back=link(f"{HOME}/edit", name=name, version=version),
        words=(
            "Mail that is handed over from now on gets the highest version that is published.",
            "Mail that waits keeps the version that it was handed over with.",
        ),
        hidden=(("name", name), ("version", version)),
    )


def _version(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 and int(text) else None


def _differences(before: Any, after: Any) -> list[Difference]:
    found = []
    for part, label in PARTS:
        old, new = getattr(before, COLUMNS[part]) or "", getattr(after, COLUMNS[part]) or ""
        if old == new:
            continue
        one, two = old.splitlines(), new.splitlines()
        if max(len(one), len(two)) > MOST_LINES or max(len(old), len(new)) > MOST_CHARS:
            found.append(Difference(label, None))
            continue
        lines = list(difflib.unified_diff(one, two, lineterm="", n=3))[2:]
        found.append(
            Difference(
                label, [(line[:1] or " ", line if line.startswith("@") else line[1:]) for line in lines]
            )
        )
    return found


HANDLERS = (show_templates, show_template, save_template, ask_publish, publish, compare)
