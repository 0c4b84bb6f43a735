"""The queue: what waits where and since when, what stops it, and pausing a site, a stream or a lane.

What can go wrong: a pause that everybody forgot. So a reason is asked for, an end is offered, and all that hold
stand at the top of the page.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, NamedTuple

from litestar import Request, Response, get, post

from pgmail.access.reach import need_target, streams_of
from pgmail.dashboard.frame import page
from pgmail.dashboard.guard import SEE, caller_of, database_of, may
from pgmail.dashboard.manage.questions import MANAGE, Ask, Field, Given, act, ask, given_of, number, why
from pgmail.errors import Refused
from pgmail.store import insight, lanes
from pgmail.store.streams import PRIORITIES
from pgmail.store.tenant import acting_as

AnyRequest = Request[Any, Any, Any]

HOME = "/dashboard/queue"
MOST = 50  # of each table: the deepest; a filter finds the others
MANY_LANES = 5_000  # a look costs by the lane: of more than these one comes more rarely
WORDS = {"site": "receiving site", "stream": "stream", "lane": "lane"}
ENDS = (
    ("", "I resume it"),
    ("900", "15 minutes have passed"),
    ("3600", "an hour has passed"),
    ("14400", "4 hours have passed"),
    ("86400", "a day has passed"),
    ("604800", "a week has passed"),
)
_SECONDS = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d):\d\d UTC\b")


class Group(NamedTuple):
    """What waits of one stream or to one site."""

    name: str
    waiting: insight.Waiting
    stops: tuple[str, ...]  # what stands in the way, in words
    pause: Any | None  # the tenant's own or the fleet's, where it is paused


class Lane(NamedTuple):
    """How much waits in a lane, and what stops it: a row of `lanes.stops`."""

    depth: int
    stop: Any


@get("/queue", scope=SEE)
async def show_queue(request: AnyRequest) -> Response[Any]:
    """The page."""
    return page(request, "manage/queue.html", title="Queue", **await _facts(request))


@get("/queue/live", scope=SEE)
async def live_queue(request: AnyRequest) -> Response[Any]:
    """Its live part, which the page asks for every few seconds."""
    return page(request, "manage/queue_live.html", title="Queue", **await _facts(request))


async def _facts(request: AnyRequest) -> dict[str, Any]:
    given, caller = await given_of(request), caller_of(request)
    stream, site = given.one("stream") or None, given.one("site").lower() or None
    streams = streams_of(caller)
    async with acting_as(database_of(request), caller) as connection:
        waiting = await insight.queue(
            connection, streams, most=MOST, stream=stream, site=site, only_tests=caller.test
        )
        pauses = await lanes.paused(connection)
        stops = await lanes.stops(
            connection, [(str(row.stream), str(row.priority), str(row.site)) for row in waiting.lanes]
        )
    return {
        "depth": waiting.all.depth,
        "counted_at": waiting.counted_at,
        "counts": waiting.all,
        "oldest": waiting.all.oldest_due_at,
        "streams": _groups(waiting.by_stream, "stream", pauses),
        "sites": _groups(waiting.by_site, "site", pauses),
        "pauses": pauses,
        "lanes": [Lane(row.depth, stop) for row, stop in zip(waiting.lanes, stops, strict=True)],
        "all": {"stream": waiting.streams, "site": waiting.sites, "lane": waiting.lanes_found},
        "every": 5 if waiting.all_lanes <= MANY_LANES else 30,  # seconds
        "stream": stream,
        "site": site,
        "may_act": may(caller, MANAGE),
        "words": WORDS,
        "plain": plain,
    }


def _groups(rows: list[insight.Waiting], what: str, pauses: list[Any]) -> list[Group]:
    """Return streams or sites with what stops each, and the pause that does, if one does."""
    held = {pause.name: pause for pause in pauses if pause.scope == what}
    return [
        Group(name, row, tuple(plain(words) for words in row.waits_for), held.get(name))
        for row in rows
        for name in (str(getattr(row, what)),)
    ]


@get("/queue/pause", scope=MANAGE)
async def ask_pause(request: AnyRequest) -> Response[Any]:
    """Ask for how long, and why."""
    given = await given_of(request)
    return ask(request, _pause(given, await _waiting(request, given)))


@post("/queue/pause", scope=MANAGE, status_code=200)
async def pause(request: AnyRequest) -> Response[Any]:
    """Stop mail to a site, of a stream or of a lane."""
    given = await given_of(request)
    waiting = await _waiting(request, given)

    async def deed() -> str:
        scope, name = _target(given)
        need_target(caller_of(request), "" if scope == "site" else name.partition("/")[0])
        async with acting_as(database_of(request), caller_of(request)) as connection:
            made = await lanes.pause(connection, scope, name, reason=given.reason(), until=_end(given))
        return f"Paused {WORDS[scope]} {made}. {number(waiting, 'email')} there now; none fails for that."

    return await act(request, _pause(given, waiting), deed)


@get("/queue/resume", scope=MANAGE)
async def ask_resume(request: AnyRequest) -> Response[Any]:
    """Ask why."""
    given = await given_of(request)
    return ask(request, _resume(given, await _waiting(request, given)))


@post("/queue/resume", scope=MANAGE, status_code=200)
async def resume(request: AnyRequest) -> Response[Any]:
    """Let mail flow again."""
    given = await given_of(request)
    waiting = await _waiting(request, given)

    async def deed() -> str:
        scope, name = _target(given)
        need_target(caller_of(request), "" if scope == "site" else name.partition("/")[0])
        async with acting_as(database_of(request), caller_of(request)) as connection:
            ended = await lanes.resume(connection, scope, name, reason=given.reason())
        return f"Resumed {WORDS[scope]} {ended}. {number(waiting, 'email')} there now; they go on."

    return await act(request, _resume(given, waiting), deed)


async def _waiting(request: AnyRequest, given: Given) -> int:
    """How many emails wait in what a question is about, as far as the caller sees; nothing is counted for it."""
    caller, scope, name = caller_of(request), given.one("scope"), given.one("name").lower()
    if not name:
        return 0
    stream, priority, site = {
        "site": (None, None, name),
        "stream": (name, None, None),
        "lane": (*name.split("/", 2), "", "")[:3],
    }.get(scope, ("", "", ""))
    async with acting_as(database_of(request), caller) as connection:
        found = await insight.queue(
            connection,
            streams_of(caller),
            most=len(PRIORITIES),
            stream=stream,
            site=site,
            only_tests=caller.test,
        )
    if priority is None:
        return found.found.depth
    return sum(row.depth for row in found.lanes if row.priority == priority)


def plain(words: str | None) -> str:
    """Return what stops a lane for people: moments to the minute."""
    return _SECONDS.sub(r"\1 UTC", words or "")


def _target(given: Given) -> tuple[str, str]:
    scope, name = given.one("scope"), given.one("name")
    if scope not in WORDS or not name:
        raise Refused("missing_field", "/name", "say which site, stream or lane")
    return scope, name


def _end(given: Given) -> datetime | None:
    after = given.seconds("seconds", ENDS, "choose when the pause ends")
    return None if after is None else datetime.now(UTC) + after


def _pause(given: Given, waiting: int) -> Ask:
    scope, name = given.one("scope"), given.one("name")
    known = scope in WORDS and bool(name)
    fields = [
        Field("seconds", "Until", "select", value=given.one("seconds"), options=ENDS),
        why(given, placeholder="they throttle us; postmaster written to"),
    ]
    if not known:
        chosen = Field(
            "scope", "What", "select", value=scope or "site",
            options=(("site", "a receiving site"), ("stream", "a stream"), ("lane", "a lane")),
        )  # fmt: skip
        named = Field(
            "name", "Name", value=name, required=True, longest=400, placeholder="gmail.com",
            help="A domain such as gmail.com, a stream, or a lane as stream/priority/site.",
        )  # fmt: skip
        fields = [chosen, named, *fields]
    return Ask(
        title=f"Pause {WORDS[scope]} {name}?" if known else "Pause mail",
        action=f"{HOME}/pause",
        button="Pause",
        back=HOME,
        words=(
            *((f"{number(waiting, 'email')} in the queue there now.",) if known else ()),
            "What it concerns waits and loses no attempt. What is being sent at this moment is still sent.",
        ),
        fields=fields,
        hidden=(("scope", scope), ("name", name)) if known else (),
    )


def _resume(given: Given, waiting: int) -> Ask:
    scope, name = given.one("scope"), given.one("name")
    return Ask(
        title=f"Resume {WORDS.get(scope, scope)} {name}?",
        action=f"{HOME}/resume",
        button="Resume",
        back=HOME,
        words=(
            f"{number(waiting, 'email')} in the queue there now. What is due goes out at once, within its limits.",
        ),
        fields=(why(given, placeholder="they answered: fixed"),),
        hidden=(("scope", scope), ("name", name)),
    )


HANDLERS = (show_queue, live_queue, ask_pause, pause, ask_resume, resume)
