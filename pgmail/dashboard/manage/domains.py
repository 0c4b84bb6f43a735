"""Domains that the tenant sends from: their state, the record to publish, and a look into DNS now.

What can go wrong: a look takes up to five seconds; the request waits, no transaction does.
"""

from __future__ import annotations

from typing import Any

from litestar import Request, Response, get, post

from pgmail.access.reach import need_all_domains
from pgmail.dashboard.frame import done, page
from pgmail.dashboard.guard import caller_of, database_of, may
from pgmail.dashboard.manage.questions import MANAGE, Ask, Field, Given, act, ask, given_of, why
from pgmail.errors import Refused
from pgmail.store import domains as store
from pgmail.store.tenant import acting_as
from pgmail.transport import txt

AnyRequest = Request[Any, Any, Any]

HOME = "/dashboard/domains"
PER_PAGE = 100


@get("/domains", scope="read")
async def show_domains(request: AnyRequest) -> Response[Any]:
    """The page: each domain with its record and what DNS said last."""
    given, caller = await given_of(request), caller_of(request)
    async with acting_as(database_of(request), caller) as connection:
        rows = await store.listing(connection, limit=PER_PAGE + 1, after=given.one("after") or None)
        rule = await store.rule(connection)
    return page(
        request, "manage/domains.html", title="Domains", rows=rows[:PER_PAGE], more=len(rows) > PER_PAGE,
        record_of=txt.record_of, prefix=txt.PREFIX, rule=rule,
        may_act=may(caller, MANAGE) and caller.streams is None and caller.from_domains is None,
    )  # fmt: skip


@get("/domains/add", scope=MANAGE)
async def ask_add(request: AnyRequest) -> Response[Any]:
    """Ask which."""
    return ask(request, _adding(await given_of(request)))


@post("/domains/add", scope=MANAGE, status_code=200)
async def add(request: AnyRequest) -> Response[Any]:
    """Add a domain, or find it."""
    given, caller = await given_of(request), caller_of(request)

    async def deed() -> str:
        need_all_domains(caller)
        async with acting_as(database_of(request), caller) as connection:
            row = await store.add(connection, given.one("name"))
        return f"{row.domain} is here. Publish its TXT record, then verify it."

    return await act(request, _adding(given), deed)


@post("/domains/verify", scope=MANAGE, status_code=200)
async def verify(request: AnyRequest) -> Response[Any]:
    """Look for the record now."""
    given, caller = await given_of(request), caller_of(request)
    need_all_domains(caller)
    async with acting_as(database_of(request), caller) as connection:
        row = await store.get(connection, given.one("name"))
    if row.trusted_by is not None:
        return done(request, f"{row.domain} needs no record: {row.trusted_by} vouches for it.", HOME)
    found = await txt.look(row.domain, request.app.state.name_servers)
    async with acting_as(database_of(request), caller) as connection:
        if not await store.checked(connection, row.id, found.outcome, list(found.found), found.said):
            raise Refused("not_found", "/name", f"{row.domain} was removed meanwhile", 404)
        row = await store.get(connection, str(row.id))
    return done(request, f"{row.domain} is {row.state}. {row.answer or ''}".strip(), HOME)


@get("/domains/remove", scope=MANAGE)
async def ask_remove(request: AnyRequest) -> Response[Any]:
    """Ask why."""
    return ask(request, _removing(await given_of(request)))


@post("/domains/remove", scope=MANAGE, status_code=200)
async def remove(request: AnyRequest) -> Response[Any]:
    """Take a domain away."""
    given, caller = await given_of(request), caller_of(request)

    async def deed() -> str:
        need_all_domains(caller)
        async with acting_as(database_of(request), caller) as connection:
            await store.remove(connection, given.one("name"), given.reason())
        return f"{given.one('name')} is removed."

    return await act(request, _removing(given), deed)


def _adding(given: Given) -> Ask:
    return Ask(
        title="Add a domain",
        no="Not now",
        action=f"{HOME}/add",
        button="Add",
        back=HOME,
        words=("You get a TXT record to publish, which proves that the domain is yours.",),
        fields=(
            Field("name", "Domain", value=given.one("name"), required=True, longest=253, placeholder="example.com",
                  focus=True),
        ),
    )  # fmt: skip


def _removing(given: Given) -> Ask:
    return Ask(
        title=f"Remove {given.one('name')}?",
        action=f"{HOME}/remove",
        button="Remove",
        back=HOME,
        words=("Where only verified domains may send, mail from it is refused from now on.",),
        fields=(why(given, placeholder="sold"),),
        hidden=(("name", given.one("name")),),
        danger=True,
    )


HANDLERS = (show_domains, ask_add, add, verify, ask_remove, remove)
