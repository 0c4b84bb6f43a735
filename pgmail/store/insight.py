"""Figures of one tenant: what flows now, what waits where, reports, and what went wrong most. Counts no mail.

Everything here reads roll-ups (`sql/functions/067_rollup.sql`, `068_gauge.sql`) and acts as the tenant of the
connection (`acting_as`). `ops/docs/reports.md` tells of each figure where it comes from and how late it is: depth is
exact at every moment, rates are a few seconds old, reports a few seconds more.

What can go wrong: no process leads. Then nothing is rolled up, and the figures stand still while mail still comes in;
`Overview.rolled_up_seconds` says how old they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple, get_args
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import namedtuple_row

from pgmail.domain.sites import TEST_SITE
from pgmail.domain.spread import quantile
from pgmail.sqlfiles import queries
from pgmail.store.database import fetch_many, fetch_one

Connection = AsyncConnection[Any]
Span = Literal["1h", "24h", "7d"]
By = Literal["stream", "tag", "template", "site", "relay", "reason", "hour", "day", "tenant"]

BYS: tuple[By, ...] = get_args(By)
# How long a chart is, how many seconds a step of it, and what it is added up from.
SPANS: Mapping[Span, tuple[timedelta, int, str]] = {
    "1h": (timedelta(hours=1), 60, "minute"),
    "24h": (timedelta(hours=24), 900, "quarter"),
    "7d": (timedelta(days=7), 3600, "hour"),
}
LATELY = timedelta(minutes=5)  # what error rate and latencies of the present are of
HOURS_KEPT = timedelta(days=35)  # hours of before are gone; days are there for two years
HOURS_SPAN = timedelta(days=2)  # a longer report is of whole days
SMALL_QUEUE = (
    20_000  # up to here the states of what waits are counted when somebody asks: it takes some milliseconds
)

_Q = queries("insight")
_BOUNCES = ("bounced_hard", "bounced_soft", "bounced_block", "bounced_other")
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


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


class Line(NamedTuple):
    """One line of a report: what became of mail in a span, in numbers of recipients; deferrals and delays are events.

    Rates are parts of one, None without a denominator. `bounced` is the sum of its four classes.
    """

    key: str
    sent: int
    bounced: int
    hard: int
    soft: int
    block: int
    other: int
    deferred: int
    delayed: int
    suppressed: int
    expired: int
    cancelled: int
    dead: int
    in_doubt: int
    held: int
    sent_rate: float | None  # of what ended as sent, bounced, expired or dead
    bounce_rate: float | None  # of what was sent or bounced
    p50_ms: float | None
    p95_ms: float | None


class Report(NamedTuple):
    """Lines by key, the largest first (by time: oldest first), of the whole hours or days around what was asked for."""

    by: By
    since: datetime
    until: datetime
    lines: list[Line]
    total: Line | None  # None for tags: an email has none or several of them
    as_of: datetime | None = None  # all of before is in the figures; None: nothing was rolled up yet


class Cause(NamedTuple):
    """One reply text, without what differs from mail to mail, and how often it was the answer."""

    kind: str  # bounced, deferred, dead, in_doubt
    group: str  # hard, soft, block, other
    reason: str
    code: int | None
    enhanced: str | None
    text: str
    n: int
    last_at: datetime
    examples: list[UUID]  # ids of emails, the newest first, 3 at most


class _Cell:
    """Figures added up: counts by kind, and sent mail by the bucket of its time to accept."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.took: Counter[int] = Counter()

    def add(self, kind: str, bucket: int, n: int) -> None:
        if kind == "took":
            self.took[bucket] += n
        else:
            self.counts[kind] += n

    def include(self, other: _Cell) -> None:
        self.counts.update(other.counts)
        self.took.update(other.took)

    def bounced(self) -> int:
        return sum(self.counts[kind] for kind in _BOUNCES)


async def overview(
    connection: Connection, span: Span, streams: Sequence[str] | None = None, *, charts: bool = True
) -> Overview:
    """Return the tenant's present and past. `streams`: of these only. Without `charts` there are no points."""
    row: Any = await fetch_one(connection, _Q["now"], {"streams": streams})
    length, step, grain = SPANS[span]
    until = _floor(row.now, step) + timedelta(seconds=step)  # the step that is under way ends the chart
    since = until - length
    cells = await _cells(connection, (since, until), step, grain, streams) if charts else {}
    lately = (_floor(row.now, 60) - LATELY, until)
    recent = _Cell()
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
    )
    steps = (
        since + timedelta(seconds=step * number) for number in range(int(length.total_seconds()) // step)
    )
    points = [_point(at, cells.get(at) or _Cell()) for at in steps] if charts else []
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


async def report(
    connection: Connection, by: By, since: datetime, until: datetime, streams: Sequence[str] | None = None
) -> Report:
    """Return what became of mail between two moments, widened to whole hours.

    It is widened to whole days of UTC by day, beyond 35 days ago, and of more than two days unless by hour: of a
    month there are a twentieth as many rows to add up. `streams`, those to be counted alone, goes with `by` of stream,
    hour and day.
    """
    now = datetime.now(UTC)
    long = by != "hour" and until - since > HOURS_SPAN
    whole = 86400 if by == "day" or long or since < now - HOURS_KEPT else 3600
    since, until = _floor(since, whole), _ceil(until, whole)
    values = {
        "dim": by,
        "grain": "day" if whole == 86400 else "hour",
        "since": since,
        "until": until,
        "streams": streams,
    }
    name = {"hour": "report_by_time", "day": "report_by_time", "tenant": "report_by_tenant"}.get(by, "report")
    lines, total = [], _Cell()
    for row in await fetch_many(connection, _Q[name], values):
        cell = _Cell()
        for kind, bucket, n in zip(row.kinds, row.buckets, row.ns, strict=True):
            cell.add(kind, bucket, n)
        total.include(cell)
        lines.append(_line(row.key, cell))
    if by in {"hour", "day"}:
        lines.sort(key=lambda line: line.key)
    else:
        lines.sort(key=lambda line: (-line.sent - line.bounced - line.deferred - line.dead, line.key))
    stand: Any = await fetch_one(connection, _Q["as_of"])
    return Report(by, since, until, lines, None if by == "tag" else _line("total", total), stand.rolled_at)


async def causes(
    connection: Connection, since: datetime, until: datetime, most: int = 50, kind: str | None = None
) -> list[Cause]:
    """Return the most frequent answers that were not a 250, the most frequent first, of whole hours around a span.

    `kind` is one of bounced, deferred, dead and in_doubt.
    """
    values = {"since": _floor(since, 3600), "until": until, "most": most, "kind": kind}
    return [Cause(*row) for row in await fetch_many(connection, _Q["causes"], values)]


def _waiting(row: Any) -> Waiting:
    *facts, waits_for = (getattr(row, name) for name in Waiting._fields)
    return Waiting._make([*facts, tuple(waits_for or ())])


async def _cells(
    connection: Connection,
    span: tuple[datetime, datetime],
    step: int,
    grain: str,
    streams: Sequence[str] | None,
) -> dict[datetime, _Cell]:
    values = {"since": span[0], "until": span[1], "step": step, "grain": grain, "streams": streams}
    cells: dict[datetime, _Cell] = {}
    for row in await fetch_many(connection, _Q["points"], values):
        cells.setdefault(row.at, _Cell()).add(row.kind, row.bucket, row.n)
    return cells


def _point(at: datetime, cell: _Cell) -> Point:
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


def _line(key: str, cell: _Cell) -> Line:
    counts, bounced = cell.counts, cell.bounced()
    sent = counts["sent"]
    ended = sent + bounced + counts["expired"] + counts["dead"]
    return Line(
        key=key,
        sent=sent,
        bounced=bounced,
        hard=counts["bounced_hard"],
        soft=counts["bounced_soft"],
        block=counts["bounced_block"],
        other=counts["bounced_other"],
        deferred=counts["deferred"],
        delayed=counts["delayed"],
        suppressed=counts["suppressed"],
        expired=counts["expired"],
        cancelled=counts["cancelled"],
        dead=counts["dead"],
        in_doubt=counts["in_doubt"],
        held=counts["held"],
        sent_rate=sent / ended if ended else None,
        bounce_rate=bounced / (sent + bounced) if sent + bounced else None,
        p50_ms=quantile(cell.took, 0.5),
        p95_ms=quantile(cell.took, 0.95),
    )


def _floor(at: datetime, seconds: int) -> datetime:
    return at - (at - _EPOCH) % timedelta(seconds=seconds)


def _ceil(at: datetime, seconds: int) -> datetime:
    return at + (_EPOCH - at) % timedelta(seconds=seconds)


def _seconds(age: timedelta) -> float:
    return max(0.0, age.total_seconds())
