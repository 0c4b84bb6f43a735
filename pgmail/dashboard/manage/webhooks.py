"""Webhooks: endpoints that are told of events, how each does, and its log of calls.

They are for live keys that reach all streams, as in the API: an endpoint is told of all of them. What can go wrong: a
secret that nobody copied. It cannot be shown again; rotating makes another, and both sign until the old one ends.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

from litestar import Request, Response, get, post

from pgmail.dashboard.frame import page
from pgmail.dashboard.guard import database_of
from pgmail.dashboard.manage import webhook_forms as forms
from pgmail.dashboard.manage.questions import MANAGE, Given, act, ask, given_of, number, once, read_id, told
from pgmail.errors import Refused
from pgmail.hooks import endpoints
from pgmail.hooks.asked import endpoints_of, manager_of, teller_of
from pgmail.store import hooks as store
from pgmail.store.tenant import Connection, acting_as

AnyRequest = Request[Any, Any, Any]

PER_PAGE = 50
OUTCOMES = (
    ("", "all calls"), ("delivered", "delivered"), ("retrying", "to be tried again"), ("failed", "given up"),
    ("dropped", "dropped"),
)  # fmt: skip


@get("/webhooks", scope=MANAGE)
async def show_webhooks(request: AnyRequest) -> Response[Any]:
    """The page: all endpoints."""
    async with acting_as(database_of(request), manager_of(request)) as connection:
        rows = await store.listing(connection)
    return page(request, "manage/webhooks.html", title="Webhooks", rows=rows, home=forms.HOME)


@get("/webhooks/endpoint", scope=MANAGE)
async def show_webhook(request: AnyRequest) -> Response[Any]:
    """One endpoint, and its calls, the newest first."""
    given = await given_of(request)
    wanted, after = given.uuid("id"), given.one("after")
    outcome = given.choice("outcome", OUTCOMES, "choose which calls")
    filter_ = store.AttemptFilter(outcome=outcome or None)
    async with acting_as(database_of(request), manager_of(request)) as connection:
        row = await store.get(connection, wanted)
        calls = await store.attempts(
            connection, wanted, filter_, limit=PER_PAGE + 1, after=read_id(after) if after else None
        )
    return page(
        request,
        "manage/webhook.html",
        title="Webhook",
        row=row,
        secrets=[
            {name: _moment(secret.get(name)) for name in ("created_at", "ends_at")} for secret in row.secrets
        ],
        calls=calls[:PER_PAGE],
        more=len(calls) > PER_PAGE,
        after=after,
        outcome=outcome,
        outcomes=OUTCOMES,
        home=forms.HOME,
    )


@get("/webhooks/add", scope=MANAGE, test=False)
async def ask_add(request: AnyRequest) -> Response[Any]:
    """Ask for where, and of what it is told."""
    manager_of(request)
    return ask(request, forms.adding(await given_of(request)))


@post("/webhooks/add", scope=MANAGE, status_code=200)
async def add(request: AnyRequest) -> Response[Any]:
    """Add an endpoint and show its secret, this once."""
    given = await given_of(request)
    try:
        caller = teller_of(request)
        new = store.NewHook(
            url=given.one("endpoint"),
            types=given.words("events") or ["email.*"],
            streams=given.words("streams") or None,
            tags=forms.tags(given),
            description=given.one("description") or None,
        )
        async with acting_as(database_of(request), caller) as connection:
            await once(connection, given)
            id_, secret = await endpoints_of(request).add(connection, new)
    except Refused as refused:
        return ask(request, forms.adding(given), refused)
    return told(
        request, "manage/webhook_secret.html", title="A new webhook", url=new.url, secret=secret, ends=None,
        back=forms.place(str(id_)),
    )  # fmt: skip


@get("/webhooks/change", scope=MANAGE)
async def ask_change(request: AnyRequest) -> Response[Any]:
    """Ask what is to be another."""
    given = await given_of(request)
    return ask(request, forms.changing(await _row(request, given), given))


@post("/webhooks/change", scope=MANAGE, status_code=200)
async def change(request: AnyRequest) -> Response[Any]:
    """Change what is another in the form."""
    given = await given_of(request)
    row = await _row(request, given)

    async def deed() -> str:
        wanted: dict[str, Any] = {
            "endpoint": given.one("endpoint"),
            "events": given.words("events") or ["email.*"],
            "streams": given.words("streams") or None,
            "tags": forms.tags(given),
            "description": given.one("description") or None,
        }
        was = {"endpoint": row.url, "events": row.types, "streams": row.streams, "tags": row.tags}
        was["description"] = row.description
        changes = {name: value for name, value in wanted.items() if value != was[name]}
        reason = given.reason()
        if not changes:
            return "Nothing was changed."
        async with acting_as(database_of(request), teller_of(request)) as connection:
            await endpoints_of(request).change(connection, row.id, changes, reason)
        return "The webhook is changed."

    return await act(request, forms.changing(row, given), deed)


@get("/webhooks/switch", scope=MANAGE)
async def ask_switch(request: AnyRequest) -> Response[Any]:
    """Ask why it is enabled or disabled."""
    given = await given_of(request)
    return ask(request, forms.switching(await _row(request, given), given))


@post("/webhooks/switch", scope=MANAGE, status_code=200)
async def switch(request: AnyRequest) -> Response[Any]:
    """Call an endpoint again from now on, or call it no more."""
    given = await given_of(request)
    row = await _row(request, given)

    async def deed() -> str:
        on = forms.wanted(given)
        status = "enabled" if on else "disabled"
        async with acting_as(database_of(request), manager_of(request)) as connection:
            await endpoints_of(request).change(connection, row.id, {"status": status}, given.reason())
        return "It is enabled, and called at once." if on else "It is disabled: it is called no more."

    return await act(request, forms.switching(row, given), deed)


@get("/webhooks/rotate", scope=MANAGE)
async def ask_rotate(request: AnyRequest) -> Response[Any]:
    """Ask when the old secret ends."""
    given = await given_of(request)
    return ask(request, forms.rotating(await _row(request, given), given))


@post("/webhooks/rotate", scope=MANAGE, status_code=200)
async def rotate(request: AnyRequest) -> Response[Any]:
    """Make another secret, and show it, this once."""
    given = await given_of(request)
    row = await _row(request, given)
    try:
        overlap = given.seconds("overlap", forms.OVERLAPS, "choose when the old secret ends") or timedelta()
        reason = given.reason()
        async with acting_as(database_of(request), manager_of(request)) as connection:
            await once(connection, given)
            secret, ends = await endpoints_of(request).rotate(
                connection, row.id, overlap.total_seconds(), reason=reason
            )
    except Refused as refused:
        return ask(request, forms.rotating(row, given), refused)
    return told(
        request, "manage/webhook_secret.html", title="A new secret", url=row.url, secret=secret, ends=ends,
        back=forms.place(str(row.id)),
    )  # fmt: skip


@get("/webhooks/test", scope=MANAGE)
async def ask_test(request: AnyRequest) -> Response[Any]:
    """Ask whether a sample is to be sent."""
    return ask(request, forms.testing(await _row(request, await given_of(request))))


@post("/webhooks/test", scope=MANAGE, status_code=200)
async def test(request: AnyRequest) -> Response[Any]:
    """Send a sample event; what came of it stands in the log."""
    given = await given_of(request)
    row = await _row(request, given)

    async def deed() -> str:
        async with acting_as(database_of(request), manager_of(request)) as connection:
            await once(connection, given)
            await store.test(connection, row.id)
        return "A sample event is on its way: what was answered stands in the log within seconds."

    return await act(request, forms.testing(row), deed)


@get("/webhooks/replay", scope=MANAGE)
async def ask_replay(request: AnyRequest) -> Response[Any]:
    """Ask what is to be told once more."""
    given = await given_of(request)
    return ask(request, forms.replaying(await _row(request, given), given))


@post("/webhooks/replay", scope=MANAGE, status_code=200)
async def replay(request: AnyRequest) -> Response[Any]:
    """Tell events of the log once more, under the same ids."""
    given = await given_of(request)
    row = await _row(request, given)

    caller = manager_of(request)

    async def deed() -> str:
        reason, filter_, fresh = given.reason(), forms.replayed(given), True

        @asynccontextmanager
        async def lend() -> AsyncIterator[Connection]:
            nonlocal fresh
            async with acting_as(database_of(request), caller) as connection:
                if fresh:
                    await once(connection, given)
                fresh = False
                yield connection

        replayed = await endpoints.replay(lend, row.id, filter_, reason)
        return f"{number(replayed, 'event')} told once more."

    question = forms.replaying(row, given)
    if given.one("event") or given.has("count"):
        return await act(request, question, deed)
    try:
        given.reason()
        async with acting_as(database_of(request), caller) as connection:
            count, complete = await store.count_replay(connection, row.id, forms.replayed(given))
    except Refused as refused:
        return ask(request, question, refused)
    if not count and complete:
        none = Refused("not_found", "/outcome", "there is no such event in the log: nothing to tell", 404)
        return ask(request, question, none)
    return ask(request, forms.telling(row, given, number(count, "event"), complete=complete))


@get("/webhooks/remove", scope=MANAGE)
async def ask_remove(request: AnyRequest) -> Response[Any]:
    """Ask why."""
    given = await given_of(request)
    return ask(request, forms.removing(await _row(request, given), given))


@post("/webhooks/remove", scope=MANAGE, status_code=200)
async def remove(request: AnyRequest) -> Response[Any]:
    """Take an endpoint away."""
    given = await given_of(request)
    row = await _row(request, given)

    async def deed() -> str:
        async with acting_as(database_of(request), manager_of(request)) as connection:
            await store.remove(connection, row.id, given.reason())
        return "The webhook is removed, with what waited for it."

    return await act(request, forms.removing(row, given), deed, forms.HOME)


async def _row(request: AnyRequest, given: Given) -> Any:
    async with acting_as(database_of(request), manager_of(request)) as connection:
        return await store.get(connection, given.uuid("id"))


def _moment(text: Any) -> datetime | None:
    return datetime.fromisoformat(text) if isinstance(text, str) else None


HANDLERS = (
    *(show_webhooks, show_webhook, ask_add, add, ask_change, change, ask_switch, switch),
    *(ask_rotate, rotate, ask_test, test, ask_replay, replay, ask_remove, remove),
)
