"""`GET /quotas`: how much the caller's tenant, its streams and its keys may hand over, and what is closed now.

Rules are an operator's (`pgmail quota`): who is limited does not move the limit, so nothing is changed here. What
can go wrong: a figure is taken for the moment's. What came in otherwise than by HTTP is known as of the leader's
last look, about a second ago.
"""

from __future__ import annotations

from typing import Any

from litestar import Request, get

from pgmail.api import params, shapes
from pgmail.api.openapi import operation
from pgmail.api.params import caller_of, database_of
from pgmail.store import quotas as store
from pgmail.store.tenant import acting_as


@get("/quotas", scope="read", operation_class=operation())
async def list_quotas(request: Request[Any, Any, Any]) -> dict[str, Any]:
    """List all quotas that concern the tenant, and the doors that are closed."""
    params.query(request)
    async with acting_as(database_of(request), caller_of(request)) as connection:
        rows = await store.listing(connection)
        doors = await store.doors(connection)
    return shapes.listed([_quota(row) for row in rows]) | {"closed": [_door(row) for row in doors]}


def _quota(row: Any) -> dict[str, Any]:
    fields: dict[str, Any] = row._asdict()
    return {"object": "quota"} | fields | {"changed_at": shapes.moment(row.changed_at)}


def _door(row: Any) -> dict[str, Any]:
    fields: dict[str, Any] = row._asdict()
    return fields | {"until": shapes.moment(row.until)}
