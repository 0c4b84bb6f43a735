"""Figures of one tenant: what flows now, what flowed lately, and what waits where. Counts no mail but a small queue.

Everything here reads roll-ups (`sql/functions/067_rollup.sql`, `068_gauge.sql`) and acts as the tenant of the
connection (`acting_as`). `ops/docs/reports.md` tells of each figure where it comes from and how late it is: depth is
exact at every moment, rates are a few seconds old, charts a few seconds more. Reports are in `reports`.

What can go wrong: no process leads. Then nothing is rolled up, and the figures stand still while mail still comes in;
`Overview.rolled_up_seconds` says how old they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple

from psycopg import AsyncConnection
from psycopg.rows import namedtuple_row

from pgmail.domain.sites import TEST_SITE
from pgmail.domain.spread import quantile
from pgmail.sqlfiles import queries
from pgmail.store.database import fetch_many, fetch_one
from pgmail.store.figures import Cell, floor

Connection = AsyncConnection[Any]
Span = Literal["1h", "24h", "7d"]
# How long a chart is, how many seconds a step of it, and what it is added up from.
SPANS: Mapping[Span, tuple[timedelta, int, str]] = {
    "1h": (timedelta(hours=1), 60, "minute"),
    "24h": (timedelta(hours=24), 900, "quarter"),
    "7d": (timedelta(days=7), 3600, "hour"),
}
LATELY = timedelta(minutes=5)  # what error rate and latencies of the present are of
SMALL_QUEUE = (
    20_000  # up to here the states of what waits are counted when somebody asks: it takes some milliseconds
)

_Q = queries("insight")


class Now(NamedTuple):
    """The present. Rates are those of the last 15 seconds; error_rate and latencies those of the last 5 minutes."""

    in_per_s: float
    sent_per_s: float
    depth: int  # recipients that wait, held ones included; dead letters are not
    oldest_due_seconds: (
        float | None
    )  # since when the oldest mail waits that is due and nobody's; None: none does
    error_rate: float | None  # of the attempts that were answered, 0 to 1; None: there were none
    p50_ms: float | None  # time to accept: from when it was due first until the next hop took it
    p95_ms: float | None
    workers: int  # of the fleet
    dead: int
    in_doubt: int  # held, since they may have been sent
    held: int
    enqueued: int  # recipients, ever


class Point(NamedTuple):
    """One step of a chart; `at` is where it begins."""

    at: datetime
    enqueued: int
    sent: int
    deferred: int
    bounced: int
    dead: int
    p50_ms: float | None
    p95_ms: float | None


class Overview(NamedTuple):
    """The present and a chart of the past, oldest first; a step without mail is a point of zeros."""

    span: Span
    step_seconds: int
    now: Now
    points: list[Point]
    rolled_up_seconds: (
        float | None
    )  # how old the newest figures of reports are; None: nothing was rolled up yet


class Waiting(NamedTuple):
    """What waits in one lane, of one stream or to one site, in numbers of recipients.

    `stream`, `priority` (high, normal, low) and `site` are None where it is added up over them.
    """

    stream: str | None
    priority: str | None
    site: str | None
    depth: int
    queued: int
    scheduled: int
    deferred: int
    held: int
    sending: int
    oldest_due_at: datetime | None
    waits_for: tuple[str, ...]  # what stops its due mail now, each in half a sentence; of a lane one at most


class Queue(NamedTuple):
    """The queue, the deepest lanes, streams and sites of it. Depths are exact; states are of `counted_at`."""

    all: Waiting  # whatever was narrowed
    found: Waiting  # of the stream and the site that were asked for
    by_stream: list[Waiting]  # the deepest first, of all; the others of what was found
    by_site: list[Waiting]
    lanes: list[Waiting]
    streams: int  # how many there are
    sites: int
    lanes_found: int
    all_lanes: int
    counted_at: datetime | None  # None: no leader has looked yet


async def overview(
    connection: Connection, span: Span, streams: Sequence[str] | None = None, *, charts: bool = True
) -> Overview:
    """Return the tenant's present and past. `streams`: of these only. Without `charts` there are no points."""
    row: Any = await fetch_one(connection, _Q["now"], {"streams": streams})
    length, step, grain = SPANS[span]
    until = floor(row.now, step) + timedelta(seconds=step)  # the step that is under way ends the chart
    since = until - length
    cells = await _cells(connection, (since, until), step, grain, streams) if charts else {}
    lately = (floor(row.now, 60) - LATELY, until)
    recent = Cell()
    for cell in (await _cells(connection, lately, 60, "minute", streams)).values():
        recent.include(cell)
    wrong = recent.bounced() + recent.counts["deferred"] + recent.counts["dead"]
    answered = recent.counts["sent"] + wrong
    now = Now(
        row.in_per_s,
        row.sent_per_s,
        row.depth,
        None if row.oldest_due_at is None else _seconds(row.now - row.oldest_due_at),
        wrong / answered if answered else None,
        quantile(recent.took, 0.5),
        quantile(recent.took, 0.95),
        row.workers,
        row.dead,
        row.in_doubt,
        row.held,
        row.enqueued,
    )
    steps = (
        since + timedelta(seconds=step * number) for number in range(int(length.total_seconds()) // step)
    )
    points = [_point(at, cells.get(at) or Cell()) for at in steps] if charts else []
    return Overview(
        span, step, now, points, None if row.rolled_at is None else _seconds(row.now - row.rolled_at)
    )


async def queue(
    connection: Connection,
    streams: Sequence[str] | None = None,
    *,
    most: int,
    stream: str | None = None,
    site: str | None = None,
    only_tests: bool = False,
) -> Queue:
    """Return what waits in all, and of the `most` deepest streams, sites and lanes. `streams`: of these only.

    `stream` and `site` narrow sites and lanes. A small queue is counted, and a deep one is not: there the states are
    those that the leader counted last. So it costs by the lane, and nothing by the mail.
    """
    whole: Any = await fetch_one(connection, _Q["depth"])
    small = whole.depth <= SMALL_QUEUE
    values = {
        "small": small,
        "streams": None if streams is None else list(streams),
        "stream": stream,
        "site": site,
        "only": TEST_SITE if only_tests else None,
        "most": most,
    }
    parts: dict[str, list[Waiting]] = {"stream": [], "site": [], "lane": []}
    sums: dict[str, Any] = {}
    async with connection.cursor(row_factory=namedtuple_row) as cursor:
        # Never prepared: a plan that fits counting as well as not counting would count.
        await cursor.execute(_Q["queue"].text.encode(), values, prepare=False)
        rows: list[Any] = await cursor.fetchall()
        for row in rows:
            if row.part in parts:
                parts[row.part].append(_waiting(row))
            else:
                sums[row.part] = row
    for found in parts.values():
        found.sort(key=lambda one: (-one.depth, one.stream or "", one.site or ""))
    every, found_ = sums["all"], sums["found"]
    return Queue(
        _waiting(every),
        _waiting(found_),
        parts["stream"],
        parts["site"],
        parts["lane"],
        every.streams,
        found_.sites,
        found_.lanes,
        every.lanes,
        whole.now if small else whole.counted_at,
    )


def _waiting(row: Any) -> Waiting:
    *facts, waits_for = (getattr(row, name) for name in Waiting._fields)
    return Waiting._make([*facts, tuple(waits_for or ())])


async def _cells(
    connection: Connection,
    span: tuple[datetime, datetime],
    step: int,
    grain: str,
    streams: Sequence[str] | None,
) -> dict[datetime, Cell]:
    values = {"since": span[0], "until": span[1], "step": step, "grain": grain, "streams": streams}
    cells: dict[datetime, Cell] = {}
    for row in await fetch_many(connection, _Q["points"], values):
        cells.setdefault(row.at, Cell()).add(row.kind, row.bucket, row.n)
    return cells


def _point(at: datetime, cell: Cell) -> Point:
    counts = cell.counts
    return Point(
        at,
        counts["enqueued"],
        counts["sent"],
        counts["deferred"],
        cell.bounced(),
        counts["dead"],
        quantile(cell.took, 0.5),
        quantile(cell.took, 0.95),
    )


def _seconds(age: timedelta) -> float:
    return max(0.0, age.total_seconds())
