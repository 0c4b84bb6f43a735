"""`GET /queue`: how much waits, where, and since when. Numbers are of recipients.

Depths are exact and cost next to nothing. How a deep queue divides into states is what the leader counted at
`counted_at`; a small one is counted now.
"""

from __future__ import annotations

from typing import Any

from litestar import Request, get

from pgmail.api import shapes
from pgmail.api.openapi import operation
from pgmail.api.params import SEE, caller_of, database_of
from pgmail.domain.sites import TEST_SITE
from pgmail.store import insight as store
from pgmail.store.tenant import acting_as

_COUNTS = ("depth", "queued", "scheduled", "deferred", "held", "sending")


@get("/queue", scope=SEE, operation_class=operation())
async def show_queue(request: Request[Any, Any, Any]) -> dict[str, Any]:
    """Tell depth, oldest due time and what stops it, in all and by stream, priority and site."""
    async with acting_as(database_of(request), caller_of(request)) as connection:
        found = await store.queue(connection)
    caller = caller_of(request)
    rows = [row for row in found.rows if caller.streams is None or row.stream in caller.streams]
    rows = [row for row in rows if row.site == TEST_SITE or not caller.test]
    oldest = min((row.oldest_due_at for row in rows if row.oldest_due_at is not None), default=None)
    totals = {key: sum(getattr(row, key) for row in rows) for key in _COUNTS}
    data = [
        {
            "stream": row.stream,
            "priority": row.priority,
            "site": row.site,
            **{key: getattr(row, key) for key in _COUNTS},
            "oldest_due_at": shapes.moment(row.oldest_due_at),
            "waits_for": row.waits_for,
        }
        for row in rows
    ]
    return {
        "object": "queue",
        **totals,
        "oldest_due_at": shapes.moment(oldest),
        "counted_at": shapes.moment(found.counted_at),
        "data": data,
    }
