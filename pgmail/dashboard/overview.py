"""The overview: what flows, what waits, how well it goes, now and over a span. Live.

Figures are `store.insight`'s, which counts nothing: a page and a look each two seconds cost the queue next to nothing,
however much waits. All who look at one tenant over one span share one refresh.

What can go wrong: no process leads, so that figures stand still. The page says how old they are.
"""

from __future__ import annotations

import time
from typing import Any, cast, get_args

from litestar import Request, Response, get
from litestar.response import Stream
from markupsafe import Markup

from pgmail.access.reach import streams_of
from pgmail.dashboard import frame, live, words
from pgmail.dashboard.charts import Series, chart
from pgmail.dashboard.guard import SEE, caller_of, database_of
from pgmail.dashboard.menu import ROOT
from pgmail.store import alerts, insight
from pgmail.store.database import Database
from pgmail.store.insight import Overview, Span
from pgmail.store.keys import Caller
from pgmail.store.tenant import acting_as

AnyRequest = Request[Any, Any, Any]

EVERY_SECONDS = 2.0
CHART_SECONDS = {"1h": 10.0, "24h": 60.0, "7d": 300.0}  # a chart moves by a pixel in about that time
SPANS: tuple[Span, ...] = get_args(Span)
PLACES = {"queue": f"{ROOT}/queue", "dead": f"{ROOT}/dead-letters"}  # where tiles lead
MAX_FIRING = 100  # more are not counted in the banner
STALE_SECONDS = 120.0  # from then on it is said how old the figures are


@get(["/", "/overview"], scope=SEE)
async def show_overview(request: AnyRequest) -> Response[str]:
    """The page; a key for tests, which these figures of all mail are none of, is led to what it may see."""
    span, caller = _span(request), caller_of(request)
    if caller.test:
        to = f"{ROOT}/emails" if "read" in caller.scopes else f"{ROOT}/queue"
        return Response("", status_code=303, headers={"Location": to})
    found, firing = await _ask(database_of(request), caller, span)
    return frame.page(
        request,
        "overview.html",
        span=span,
        spans=SPANS,
        tiles=_tiles(found),
        charts=_charts(found),
        **_facts(found, firing),
    )


@get("/live/overview", scope=SEE, test=False)
async def stream_overview(request: AnyRequest) -> Stream:
    """The page's tiles and charts, as they change."""
    span, caller, database = _span(request), caller_of(request), database_of(request)
    drawn = float("-inf")

    async def make() -> live.Parts:
        nonlocal drawn
        due = time.monotonic() - drawn >= CHART_SECONDS[span]
        found, firing = await _ask(database, caller, span, charts=due)
        notice = frame.rendered("overview_notice.html", **_facts(found, firing))
        parts = {"tiles": _tiles(found), "notice": notice}
        if due:
            drawn = time.monotonic()
            parts["charts"] = _charts(found)
        return parts

    reach = None if caller.streams is None else frozenset(caller.streams)
    return live.stream(request, ("overview", caller.tenant_id, reach, span), make, EVERY_SECONDS)


async def _ask(
    database: Database, caller: Caller, span: Span, *, charts: bool = True
) -> tuple[Overview, list[Any]]:
    """Return the figures, and alerts that fire and are not silenced, the newest first."""
    streams = streams_of(caller)
    async with acting_as(database, caller) as connection:
        found = await insight.overview(connection, span, streams, charts=charts)
        firing = await alerts.listing(connection, state="firing", limit=MAX_FIRING)
    return found, [row for row in firing if not row.silenced]


def _span(request: AnyRequest) -> Span:
    asked = request.query_params.get("span", "1h")
    return cast("Span", asked) if asked in SPANS else "1h"


def _tiles(found: Overview) -> str:
    return frame.rendered("overview_tiles.html", now=found.now, places=PLACES)


def _facts(found: Overview, firing: list[Any]) -> dict[str, Any]:
    late = found.rolled_up_seconds
    return {
        "firing": firing,
        "more_firing": len(firing) == MAX_FIRING,
        "grave": any(row.severity == "critical" for row in firing),
        "late": late if late is not None and late > STALE_SECONDS else None,
        "workers": found.now.workers,
        "idle": not found.now.enqueued,
    }


def _charts(found: Overview) -> Markup:
    """Three charts: what came and went, how it failed, how long it took."""
    points = found.points
    if any(point.enqueued or point.sent for point in points[:-1]):
        points = points[:-1]  # the step that is under way would look like a fall
    moments = [point.at for point in points]
    step = words.duration(found.step_seconds).replace("60 s", "minute")
    unit = f"per {step.removeprefix('1 ')}"
    return Markup("").join(
        (
            chart(
                "Throughput",
                moments,
                [
                    Series("Enqueued", [point.enqueued for point in points]),
                    Series("Sent", [point.sent for point in points], colour=2, area=True),
                ],
                unit,
            ),
            chart(
                "Trouble",
                moments,
                [
                    Series("Deferred", [point.deferred for point in points], colour=4),
                    Series("Bounced", [point.bounced for point in points], colour=3),
                    Series("Dead", [point.dead for point in points], colour=5),
                ],
                unit,
            ),
            chart(
                "Time to accept",
                moments,
                [
                    Series("p50", [point.p50_ms for point in points], colour=2),
                    Series("p95", [point.p95_ms for point in points]),
                ],
                read=words.ms,
            ),
        )
    )
