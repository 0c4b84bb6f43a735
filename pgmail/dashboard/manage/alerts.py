"""Alerts: what fires now and what did, silences, the rules that hold for the tenant, and who is told (`alert_targets`).

What can go wrong: a silence that everybody forgot. So a reason is asked for, an end is offered, and all that hold stand
at the top of the page.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

from litestar import Request, Response, get, post

from pgmail.access.reach import need_all_streams
from pgmail.dashboard.frame import page
from pgmail.dashboard.guard import SEE, caller_of, database_of, may
from pgmail.dashboard.manage.questions import MANAGE, Ask, Field, Given, act, ask, given_of, read_id, why
from pgmail.errors import Refused
from pgmail.store import alerts as store
from pgmail.store.tenant import acting_as

AnyRequest = Request[Any, Any, Any]

HOME = "/dashboard/alerts"
PER_PAGE = 50
EVERYTHING = "*"  # of a silence: all subjects of its rule
ENDS = (
    ("", "I end it"),
    ("3600", "an hour has passed"),
    ("14400", "4 hours have passed"),
    ("86400", "a day has passed"),
    ("604800", "a week has passed"),
)
SEVERITIES = (("info", "info"), ("warning", "warning"), ("critical", "critical"))
SWITCH = (("yes", "on"), ("no", "off"))
WEEK = 604_800


@get("/alerts", scope=SEE, test=False)
async def show_alerts(request: AnyRequest) -> Response[Any]:
    """The page: what is open, or what is over."""
    given, caller = await given_of(request), caller_of(request)
    over, after = given.one("state") == "resolved", given.one("after")
    async with acting_as(database_of(request), caller) as connection:
        rows = await store.listing(
            connection,
            state="resolved" if over else "open",
            limit=PER_PAGE + 1,
            after=read_id(after) if after else None,
        )
        facts: dict[str, Any] = {
            "silences": await store.silences(connection),
            "rules": await store.rules(connection),
            "targets": await store.targets(connection),
        }
    return page(
        request,
        "manage/alerts.html",
        title="Alerts",
        rows=rows[:PER_PAGE],
        more=len(rows) > PER_PAGE,
        over=over,
        after=after,
        every=EVERYTHING,
        may_act=may(caller, MANAGE),
        **facts,
    )


@get("/alerts/silence", scope=MANAGE)
async def ask_silence(request: AnyRequest) -> Response[Any]:
    """Ask for how long, and why."""
    return ask(request, _silencing(await given_of(request)))


@post("/alerts/silence", scope=MANAGE, status_code=200)
async def silence(request: AnyRequest) -> Response[Any]:
    """Tell nobody of a rule's alerts, or of one subject's."""
    given = await given_of(request)

    async def deed() -> str:
        need_all_streams(caller_of(request))
        length = given.seconds("seconds", ENDS, "choose when the silence ends")
        until = None if length is None else datetime.now(UTC) + length
        async with acting_as(database_of(request), caller_of(request)) as connection:
            await store.silence(
                connection, given.one("rule"), reason=given.reason(), until=until, subject=_subject(given)
            )
        return f"{_named(given)} is silenced: it is still looked at, and nobody is told."

    return await act(request, _silencing(given), deed)


@get("/alerts/unsilence", scope=MANAGE)
async def ask_unsilence(request: AnyRequest) -> Response[Any]:
    """Ask why."""
    return ask(request, _unsilencing(await given_of(request)))


@post("/alerts/unsilence", scope=MANAGE, status_code=200)
async def unsilence(request: AnyRequest) -> Response[Any]:
    """End a silence."""
    given = await given_of(request)

    async def deed() -> str:
        need_all_streams(caller_of(request))
        async with acting_as(database_of(request), caller_of(request)) as connection:
            if not await store.unsilence(
                connection, given.one("rule"), reason=given.reason(), subject=_subject(given)
            ):
                raise Refused("not_silenced", "/rule", "it is not silenced any more", 404)
        return f"{_named(given)} is told again."

    return await act(request, _unsilencing(given), deed)


@get("/alerts/rule", scope=MANAGE)
async def ask_rule(request: AnyRequest) -> Response[Any]:
    """Ask what is to hold."""
    given = await given_of(request)
    return ask(request, _ruling(await _rule(request, given.one("rule")), given))


@post("/alerts/rule", scope=MANAGE, status_code=200)
async def set_rule(request: AnyRequest) -> Response[Any]:
    """Change what was changed of a rule, for this tenant."""
    given = await given_of(request)
    row = await _rule(request, given.one("rule"))

    async def deed() -> str:
        need_all_streams(caller_of(request))
        reason, changes = given.reason(), _changes(row, given)
        if not changes:
            return "Nothing was changed."
        async with acting_as(database_of(request), caller_of(request)) as connection:
            await store.set_rule(connection, row.name, changes, reason=reason)
        return f"The rule {row.name} is changed."

    return await act(request, _ruling(row, given), deed)


async def _rule(request: AnyRequest, name: str) -> Any:
    async with acting_as(database_of(request), caller_of(request)) as connection:
        row = next((row for row in await store.rules(connection) if row.name == name), None)
    if row is None:
        raise Refused("unknown_rule", "/rule", f"no rule is named {name[:63]!r}", 404)
    return row


def _changes(row: Any, given: Given) -> dict[str, object]:
    """Return what differs from a rule, as the store takes it. Raises Refused with the field."""
    wanted: dict[str, object] = {
        "enabled": given.choice("enabled", SWITCH, "on or off") == "yes",
        "severity": given.choice("severity", SEVERITIES, "choose how bad it is"),
    }
    if given.one("threshold"):
        wanted["threshold"] = _number(given, "threshold")
    if given.one("for_seconds"):
        seconds = _number(given, "for_seconds")
        if not (0 <= seconds <= WEEK and seconds == int(seconds)):
            raise Refused("invalid_rule", "/for_seconds", "must be 0 to 604,800 whole seconds")
        wanted["for_seconds"] = int(seconds)
    return {name: value for name, value in wanted.items() if value != getattr(row, name)}


def _number(given: Given, name: str) -> float:
    try:
        found = float(given.one(name))
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise Refused("invalid_rule", f"/{name}", "must be a number")
    return found


def _subject(given: Given) -> str:
    return given.one("subject") or EVERYTHING


def _named(given: Given) -> str:
    subject = _subject(given)
    return given.one("rule") if subject == EVERYTHING else f"{given.one('rule')} of {subject}"


def _silencing(given: Given) -> Ask:
    return Ask(
        title=f"Silence {_named(given)}?",
        action=f"{HOME}/silence",
        button="Silence",
        back=HOME,
        words=("Nobody is told of it. It goes on being looked at, and stands on this page.",),
        fields=(
            Field("seconds", "Until", "select", value=given.one("seconds") or "14400", options=ENDS),
            why(given, placeholder="the relay moves tonight"),
        ),
        hidden=(("rule", given.one("rule")), ("subject", _subject(given))),
    )


def _unsilencing(given: Given) -> Ask:
    return Ask(
        title=f"Tell of {_named(given)} again?",
        action=f"{HOME}/unsilence",
        button="End the silence",
        back=HOME,
        fields=(why(given, placeholder="it is done"),),
        hidden=(("rule", given.one("rule")), ("subject", _subject(given))),
    )


def _ruling(row: Any, given: Given) -> Ask:
    def held(name: str, value: object) -> str:
        return given.one(name) or str(value)

    threshold = "" if row.threshold is None else f"{row.threshold:g}"
    return Ask(
        title=f"Change {row.name}",
        action=f"{HOME}/rule",
        button="Save",
        back=HOME,
        words=(row.note,) if row.note else (),
        fields=(
            Field("enabled", "It is", "select", value=held("enabled", "yes" if row.enabled else "no"), options=SWITCH),
            Field("threshold", "Above", "number", value=held("threshold", threshold), step="any",
                  unit=row.unit or ""),
            Field("for_seconds", "For", "number", value=held("for_seconds", row.for_seconds), least=0, most=WEEK,
                  step=1, unit="seconds"),
            Field("severity", "Severity", "select", value=held("severity", row.severity), options=SEVERITIES),
            why(given, placeholder="we are larger now"),
        ),
        hidden=(("rule", row.name),),
    )  # fmt: skip


HANDLERS = (
    *(show_alerts, ask_silence, silence, ask_unsilence, unsilence),
    *(ask_rule, set_rule),
)
