"""Who is told of alerts, on pages: somebody is added, tried and taken away. The list stands on the page of alerts.

What can go wrong: a URL is the secret itself, as Slack's are. So neither it nor what signs is shown again: a target
that moved is taken away and added anew.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from litestar import Request, Response, get, post

from pgmail import alerting
from pgmail.access.reach import need_all_streams
from pgmail.dashboard.guard import caller_of, database_of
from pgmail.dashboard.manage.questions import MANAGE, Ask, Field, Given, act, ask, given_of, once, why
from pgmail.errors import Refused
from pgmail.store import alerts as store
from pgmail.store.tenant import Connection, acting_as

AnyRequest = Request[Any, Any, Any]

HOME = "/dashboard/alerts"
KINDS = (("email", "email"), ("webhook", "webhook"), ("slack", "Slack, or shaped like it"))
SEVERITIES = (("info", "everything"), ("warning", "warnings and worse"), ("critical", "what is critical"))


@get("/alerts/targets/add", scope=MANAGE, test=False)
async def ask_add(request: AnyRequest) -> Response[Any]:
    """Ask who, by what way, and of what."""
    return ask(request, _adding(await given_of(request)))


@post("/alerts/targets/add", scope=MANAGE, status_code=200)
async def add(request: AnyRequest) -> Response[Any]:
    """Tell somebody of this tenant's alerts from now on."""

    async def deed(connection: Connection, given: Given) -> str:
        target, state = _target(given), request.app.state
        try:
            await alerting.add_target(connection, state.keks, state.hook_networks, target)
        except Refused as refused:
            raise _at_its_field(refused) from None
        return f"{target.name} is told from now on. Try it: what comes of that stands beside it."

    return await _do(request, _adding, deed)


@get("/alerts/targets/test", scope=MANAGE, test=False)
async def ask_test(request: AnyRequest) -> Response[Any]:
    """Ask whether somebody is to be told for a trial."""
    return ask(request, _testing(await given_of(request)))


@post("/alerts/targets/test", scope=MANAGE, status_code=200)
async def test(request: AnyRequest) -> Response[Any]:
    """Have a trial sent; how that went stands beside the target."""

    async def deed(connection: Connection, given: Given) -> str:
        await once(connection, given)
        await store.send_test(connection, given.one("target"))
        return f"{given.one('target')} is told within seconds; how that went stands beside it."

    return await _do(request, _testing, deed)


@get("/alerts/targets/remove", scope=MANAGE, test=False)
async def ask_remove(request: AnyRequest) -> Response[Any]:
    """Ask why."""
    return ask(request, _removing(await given_of(request)))


@post("/alerts/targets/remove", scope=MANAGE, status_code=200)
async def remove(request: AnyRequest) -> Response[Any]:
    """Tell it of nothing from now on."""

    async def deed(connection: Connection, given: Given) -> str:
        name = given.one("target")
        if not await store.remove_target(connection, name, reason=given.reason()):
            raise Refused("not_found", "/target", f"no target is named {name[:63]!r}", 404)
        return f"{name} is told of nothing any more."

    return await _do(request, _removing, deed)


async def _do(
    request: AnyRequest,
    question: Callable[[Given], Ask],
    deed: Callable[[Connection, Given], Awaitable[str]],
) -> Response[Any]:
    """Answer a question about targets in one transaction of the tenant's, for a key that reaches all streams."""
    given = await given_of(request)

    async def answer() -> str:
        need_all_streams(caller_of(request))
        async with acting_as(database_of(request), caller_of(request)) as connection:
            return await deed(connection, given)

    return await act(request, question(given), answer)


def _target(given: Given) -> alerting.Target:
    kind, place = given.choice("kind", KINDS, "choose how it is told"), given.one("where")
    if not place:
        raise Refused("missing_field", "/where", "say where: addresses, or a URL")
    return alerting.Target(
        name=given.one("name"),
        kind=kind,
        url=None if kind == "email" else place,
        to=given.words("where") if kind == "email" else None,
        secret=given.one("signs") or None,
        severity=given.choice("severity", SEVERITIES, "choose of what it is told"),
    )


def _at_its_field(refused: Refused) -> Refused:
    """Return the same fault where the form has its field."""
    name, *_ = refused.field.strip("/").split("/")
    field = {"url": "where", "to": "where", "secret": "signs"}.get(name, name)
    return Refused(refused.code, f"/{field}", refused.message, refused.status)


def _adding(given: Given) -> Ask:
    return Ask(
        title="Who is to be told?",
        no="Not now",
        action=f"{HOME}/targets/add",
        button="Add it",
        back=HOME,
        words=("A URL and its signing secret are kept sealed where there are keys for it, and shown nowhere again.",),
        fields=(
            Field("name", "Name", value=given.one("name"), required=True, longest=63, focus=True,
                  placeholder="ops"),
            Field("kind", "How", "select", value=given.one("kind") or KINDS[0][0], options=KINDS),
            Field("where", "Where", value=given.one("where"), required=True, longest=4_000,
                  placeholder="you@example.com", help="Addresses, several by commas; or the URL to call."),
            Field("signs", "Signing secret", "password", longest=500,
                  help="Of a webhook, if you like: whsec_ and base64, or 16 characters and more."),
            Field("severity", "Which alerts", "select", value=given.one("severity") or "warning", options=SEVERITIES),
        ),
    )  # fmt: skip


def _testing(given: Given) -> Ask:
    return Ask(
        title=f"Send a trial to {given.one('target')}?",
        no="Not now",
        action=f"{HOME}/targets/test",
        button="Send it",
        back=HOME,
        words=("It says that it is a trial.",),
        hidden=(("target", given.one("target")),),
    )


def _removing(given: Given) -> Ask:
    return Ask(
        title=f"Tell {given.one('target')} of nothing any more?",
        action=f"{HOME}/targets/remove",
        button="Remove it",
        back=HOME,
        words=("What waits to be told to it is given up.",),
        fields=(why(given, placeholder="she left the team"),),
        hidden=(("target", given.one("target")),),
        danger=True,
    )


HANDLERS = (ask_add, add, ask_test, test, ask_remove, remove)
