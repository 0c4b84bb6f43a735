"""`GET /reports` and `GET /reports/causes`: what became of mail, by what, and what went wrong most.

Figures come from roll-ups, a few seconds late (`ops/docs/reports.md`); a span is widened to whole hours, or days, and
the answer says to which. What can go wrong: a key that is limited to streams asks for a dimension in which streams
cannot be told apart. That is refused rather than answered with everybody's.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from litestar import Request, Response, get

from pgmail.access.reach import streams_of
from pgmail.api import params, shapes
from pgmail.api.openapi import operation
from pgmail.api.params import SEE, caller_of, database_of
from pgmail.domain import csvtext
from pgmail.errors import Refused
from pgmail.store import reports as store
from pgmail.store.keys import Caller
from pgmail.store.reports import By, Line
from pgmail.store.tenant import acting_as

AnyRequest = Request[Any, Any, Any]

BYS = tuple(by for by in store.BYS if by != "tenant")  # a key speaks for one tenant
KINDS = ("bounced", "deferred", "dead", "in_doubt")
DAY, LONGEST = timedelta(days=1), timedelta(days=732)
_ALONE = ("stream", "hour", "day")  # where streams can be told apart


@get(
    "/reports",
    operation_class=operation(query=("by", "since", "until", "format")),
    opt={"scope": SEE, "test": False},
)
async def show_report(request: AnyRequest) -> Response[Any]:
    """Tell what became of mail, by `by`: JSON, or CSV by `format=csv` or `Accept: text/csv`."""
    given = params.query(request, "by", "since", "until", "format")
    by = _by(given.get("by", "stream"))
    since, until = _span(given)
    wanted = given.get("format", "csv" if "text/csv" in request.headers.get("accept", "") else "json")
    if wanted not in {"json", "csv"}:
        raise Refused("invalid_parameter", "/format", "must be json or csv")
    caller = caller_of(request)
    if caller.streams is not None and by not in _ALONE:
        raise _limited(caller)
    async with acting_as(database_of(request), caller) as connection:
        found = await store.report(connection, by, since, until, streams_of(caller))
    if wanted == "csv":
        return Response(csvtext.write((by, *Line._fields[1:]), found.lines), media_type="text/csv")
    return Response(
        {
            "object": "report",
            "by": by,
            "since": shapes.moment(found.since),
            "until": shapes.moment(found.until),
            "as_of": shapes.moment(found.as_of),
            "total": None if found.total is None else _line(found.total),
            "data": [_line(line) for line in found.lines],
        }
    )


@get(
    "/reports/causes",
    operation_class=operation(query=("since", "until", "kind", "limit")),
    opt={"scope": SEE, "test": False},
)
async def show_causes(request: AnyRequest) -> dict[str, Any]:
    """List the most frequent answers that were not a 250, with examples."""
    given = params.query(request, "since", "until", "kind", "limit")
    kind = given.get("kind")
    if kind is not None and kind not in KINDS:
        raise Refused("invalid_parameter", "/kind", f"must be one of {', '.join(KINDS)}")
    since, until = _span(given)
    caller = caller_of(request)
    if caller.streams is not None:
        raise _limited(caller)
    async with acting_as(database_of(request), caller) as connection:
        rows = await store.causes(connection, since, until, params.limit_of(given, 50), kind)
    data: list[dict[str, Any]] = [
        {
            "object": "cause",
            **row._asdict(),
            "last_at": shapes.moment(row.last_at),
            "examples": [str(example) for example in row.examples],
        }
        for row in rows
    ]
    return shapes.listed(data)


def _by(text: str) -> By:
    for by in BYS:
        if by == text:
            return by
    raise Refused("invalid_parameter", "/by", f"must be one of {', '.join(BYS)}")


def _span(given: dict[str, str]) -> tuple[datetime, datetime]:
    until = params.moment_of(given, "until") or datetime.now(UTC)
    since = params.moment_of(given, "since") or until - DAY
    if since >= until:
        raise Refused("invalid_parameter", "/since", "must lie before until")
    if until - since > LONGEST:
        raise Refused("invalid_parameter", "/since", f"must lie at most {LONGEST.days} days before until")
    return since, until


def _limited(caller: Caller) -> Refused:
    return Refused(
        "stream_not_allowed",
        "/by",
        f"these figures are of all streams; this API key may use {', '.join(sorted(caller.streams or ()))}: "
        f"ask by {', '.join(_ALONE)}",
        403,
    )


def _line(line: Line) -> dict[str, Any]:
    return line._asdict()
