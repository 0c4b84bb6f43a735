"""Reports of one tenant: what became of mail in a span, by what is asked for, and what went wrong most. Counts no mail.

They read roll-ups (`sql/functions/067_rollup.sql`) and act as the tenant of the connection (`acting_as`).
`ops/docs/reports.md` tells of each figure where it comes from and how late it is.

What can go wrong: no process leads. Then nothing is rolled up, and a report says by `as_of` how far it goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple, get_args
from uuid import UUID

from psycopg import AsyncConnection

from pgmail.domain.spread import quantile
from pgmail.sqlfiles import queries
from pgmail.store.database import fetch_many, fetch_one
from pgmail.store.figures import Cell, ceil, floor

Connection = AsyncConnection[Any]
By = Literal["stream", "tag", "template", "site", "relay", "reason", "hour", "day", "tenant"]

BYS: tuple[By, ...] = get_args(By)
HOURS_KEPT = timedelta(days=35)  # hours of before are gone; days are there for two years
HOURS_SPAN = timedelta(days=2)  # a longer report is of whole days

_Q = queries("insight")


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
    since, until = floor(since, whole), ceil(until, whole)
    values = {
        "dim": by,
        "grain": "day" if whole == 86400 else "hour",
        "since": since,
        "until": until,
        "streams": streams,
    }
    name = {"hour": "report_by_time", "day": "report_by_time", "tenant": "report_by_tenant"}.get(by, "report")
    lines, total = [], Cell()
    for row in await fetch_many(connection, _Q[name], values):
        cell = Cell()
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
    values = {"since": floor(since, 3600), "until": until, "most": most, "kind": kind}
    return [Cause(*row) for row in await fetch_many(connection, _Q["causes"], values)]


def _line(key: str, cell: Cell) -> Line:
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
