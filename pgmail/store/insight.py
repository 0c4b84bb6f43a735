"""Figures of one tenant: what flows now, what waits where, reports, and what went wrong most. Counts no mail.

Everything here reads roll-ups (`sql/functions/067_rollup*.sql`) and acts as the tenant of the connection (`acting_as`).
`ops/docs/reports.md` tells of each figure where it comes from and how late it is: depth is exact at every moment,
rates are a few seconds old, reports a few seconds more.

What can go wrong: no process leads. Then nothing is rolled up, and the figures stand still while mail still comes in;
`Overview.rolled_up_seconds` says how old they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal, NamedTuple
from uuid import UUID

from psycopg import AsyncConnection

Connection = AsyncConnection[Any]
Span = Literal["1h", "24h", "7d"]
By = Literal["stream", "tag", "template", "site", "relay", "class", "hour", "day", "tenant"]


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
    """What waits in one lane, in numbers of recipients."""

    stream: str
    priority: int
    site: str
    depth: int
    queued: int
    scheduled: int
    deferred: int
    held: int
    sending: int
    oldest_due_at: datetime | None
    waits_for: str | None  # in half a sentence, what stops its due mail now


class Queue(NamedTuple):
    """The queue by lane. Depths are exact; how they divide into states was counted at `counted_at`."""

    rows: list[Waiting]
    depth: int
    counted_at: datetime | None


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
    """Lines by key, the largest first (by time: oldest first). `since` and `until` are those that could be kept to."""

    by: By
    since: datetime
    until: datetime
    lines: list[Line]
    total: Line


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


async def overview(connection: Connection, span: Span, streams: Sequence[str] | None = None) -> Overview:
    """Return the tenant's present and past. `streams`: of these only; `dead`, `held` and `in_doubt` as well."""
    raise NotImplementedError


async def queue(connection: Connection, streams: Sequence[str] | None = None) -> Queue:
    """Return what waits by stream, priority and site, the deepest lanes first."""
    raise NotImplementedError


async def report(
    connection: Connection, by: By, since: datetime, until: datetime, streams: Sequence[str] | None = None
) -> Report:
    """Return what became of mail between two moments. `streams` with `by` of stream, hour and day only."""
    raise NotImplementedError


async def causes(
    connection: Connection, since: datetime, until: datetime, most: int = 50, kind: str | None = None
) -> list[Cause]:
    """Return the most frequent answers that were not a 250, the most frequent first."""
    raise NotImplementedError
