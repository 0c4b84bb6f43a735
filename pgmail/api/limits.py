"""`GET /limits`: what the fleet limits, as far as it concerns the caller: relays, sites and its own tenant.

A limit belongs to the fleet, and a key speaks for one tenant, so none is changed here: `pgmail limit` does. What
can go wrong: a limit that explains a delay is looked for among those of another name; `GET /lanes` and
`GET /queue` say for each lane which one holds it back.
"""

from __future__ import annotations

from typing import Any

from litestar import Request, get

from pgmail.api import params, shapes
from pgmail.api.openapi import operation
from pgmail.api.params import SEE, caller_of, database_of
from pgmail.errors import Refused
from pgmail.store import lanes as store
from pgmail.store.tenant import acting_as

_SCOPES = ("relay", "site", "tenant")
_FILTERS = ("scope", "name")


@get("/limits", scope=SEE, operation_class=operation(query=_FILTERS))
async def list_limits(request: Request[Any, Any, Any]) -> dict[str, Any]:
    """List all limits that concern the tenant: relays', its own, sites'."""
    given = params.query(request, *_FILTERS)
    scope = given.get("scope")
    if scope is not None and scope not in _SCOPES:
        raise Refused("invalid_parameter", "/scope", f"must be one of {', '.join(_SCOPES)}")
    async with acting_as(database_of(request), caller_of(request)) as connection:
        rows = await store.limits(connection, scope, given.get("name"))
    return shapes.listed([_limit(row) for row in rows])


def _limit(row: Any) -> dict[str, Any]:
    fields: dict[str, Any] = row._asdict()
    return {"object": "limit"} | fields | {"changed_at": shapes.moment(row.changed_at)}
