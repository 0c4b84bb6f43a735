"""`GET /queue`: how much waits, where, and since when. Numbers are of recipients.

Depths are exact and cost next to nothing. How a deep queue divides into states is what the leader counted at
`counted_at`; a small one is counted now. Of many lanes the deepest are told, and totals are of them all.
"""

from __future__ import annotations

from typing import Any

from litestar import Request, get

from pgmail.access.reach import streams_of
from pgmail.api import shapes
from pgmail.api.openapi import operation
from pgmail.api.params import SEE, caller_of, database_of, limit_of, query
from pgmail.store import insight as store
from pgmail.store.streams import PRIORITIES
from pgmail.store.tenant import acting_as

_FILTERS = ("stream", "site", "limit")
_COUNTS = ("depth", "queued", "scheduled", "deferred", "held", "sending")
LANES, MOST_LANES = 1_000, 10_000  # in an answer, unless another number is asked for, and at most


@get("/queue", scope=SEE, operation_class=operation(query=_FILTERS))
async def show_queue(request: Request[Any, Any, Any]) -> dict[str, Any]:
    """Tell depth, oldest due time and what stops it, in all and of the deepest lanes; `lanes` is how many there are."""
    given, caller = query(request, *_FILTERS), caller_of(request)
    stream, site = given.get("stream"), given.get("site")
    most = limit_of(given, LANES, MOST_LANES)
    reached = streams_of(caller, stream)
    async with acting_as(database_of(request), caller) as connection:
        found = await store.queue(
            connection,
            reached,
            most=most,
            stream=stream,
            site=None if site is None else site.lower(),
            only_tests=caller.test,
        )
    data = [
        {
            "stream": row.stream,
            "priority": row.priority,
            "site": row.site,
            **{key: getattr(row, key) for key in _COUNTS},
            "oldest_due_at": shapes.moment(row.oldest_due_at),
            "waits_for": row.waits_for[0] if row.waits_for else None,
        }
        for row in sorted(found.lanes, key=lambda row: (row.stream, PRIORITIES[str(row.priority)]))
    ]
    return {
        "object": "queue",
        **{key: getattr(found.found, key) for key in _COUNTS},
        "oldest_due_at": shapes.moment(found.found.oldest_due_at),
        "counted_at": shapes.moment(found.counted_at),
        "lanes": found.lanes_found,
        "has_more": found.lanes_found > len(data),
        "data": data,
    }
