"""`/audit`: who did what for the key's tenant, when, from where and why.

Row-level security shows the tenant's own acts; those of the fleet and of others are an operator's to read
(`pgmail audit`).
"""

from __future__ import annotations

from typing import Any

from litestar import Request, get

from pgmail.access.reach import need_all_streams
from pgmail.api import params, shapes
from pgmail.api.openapi import operation
from pgmail.api.params import caller_of, database_of
from pgmail.errors import Refused
from pgmail.store import audit as store
from pgmail.store.tenant import acting_as

AnyRequest = Request[Any, Any, Any]

_FILTERS = ("since", "until", "actor", "action", "object")
MOST = 9_223_372_036_854_775_807  # a bigint


@get(
    "/audit",
    operation_class=operation(query=(*_FILTERS, "limit", "after")),
    opt={"scope": "manage", "test": False},
)
async def list_audit(request: AnyRequest) -> dict[str, Any]:
    """List acts, newest first; `after` is the id of one. `action` and `object` may end in `*`."""
    need_all_streams(caller_of(request))  # an act tells of any stream's mail: an address, a reason
    given = params.query(request, *_FILTERS, "limit", "after")
    limit = params.limit_of(given)
    async with acting_as(database_of(request), caller_of(request)) as connection:
        rows = await store.listing(
            connection,
            limit=limit + 1,
            own=True,
            before=_id(given.get("after")),
            since=params.moment_of(given, "since"),
            until=params.moment_of(given, "until"),
            actor=given.get("actor"),
            action=given.get("action"),
            object=given.get("object"),
        )
    return shapes.listed([_act(row) for row in rows[:limit]], more=len(rows) > limit)


def _id(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= MOST):
        raise Refused("invalid_parameter", "/after", "must be the id of an act of the list")
    return int(text)


def _act(row: Any) -> dict[str, Any]:
    return {
        "object": "act",
        "id": str(row.id),
        "at": shapes.moment(row.at),
        "actor": row.actor,
        "action": row.action,
        "on": row.object,
        "reason": row.reason,
        "source": row.source,
        "application": row.application,
    }
