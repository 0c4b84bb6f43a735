"""`/lanes`: who goes next, what stands still and why; and pausing a site, a stream or a lane.

A lane is a stream, a priority and a receiving site; its id is the three with slashes between them. A pause here
is the tenant's own: what it names waits, and none of it fails for that. What can go wrong: a pause that everybody
forgot. So a reason is required, `until` ends one by itself, and each list shows all that hold.
"""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request, get, post

from pgmail.access.reach import need_target
from pgmail.api import params, shapes
from pgmail.api.bodies import read_json, read_struct
from pgmail.api.openapi import operation
from pgmail.api.params import SEE, caller_of, database_of
from pgmail.errors import Refused
from pgmail.store import lanes as store
from pgmail.store.streams import PRIORITIES
from pgmail.store.tenant import acting_as

AnyRequest = Request[Any, Any, Any]

_FILTERS = ("stream", "site")


class Target(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a resume: what, one of the three, and why (for the record)."""

    site: str | None = None
    stream: str | None = None
    lane: str | None = None
    reason: str | None = None

    def chosen(self) -> tuple[str, str]:
        """Return scope and name. Raises Refused `missing_field` unless one is given."""
        given = [(scope, name) for scope in ("site", "stream", "lane") if (name := getattr(self, scope))]
        if len(given) != 1:
            raise Refused("missing_field", "/site", "give one of site, stream and lane")
        return given[0]


class NewPause(Target, forbid_unknown_fields=True):
    """The body of a pause: the same, and when it ends by itself."""

    until: str | None = None


@get("/lanes", scope=SEE, operation_class=operation(query=(*_FILTERS, "limit", "after")))
async def list_lanes(request: AnyRequest) -> dict[str, Any]:
    """List active lanes by stream, priority and site with what stops each, and all pauses that hold."""
    given = params.query(request, *_FILTERS, "limit", "after")
    limit = params.limit_of(given)
    async with acting_as(database_of(request), caller_of(request)) as connection:
        rows = await store.lanes(
            connection,
            limit=limit + 1,
            after=_place(given.get("after")),
            stream=given.get("stream"),
            site=given.get("site"),
        )
        pauses = await store.paused(connection)
    page = shapes.listed([_lane(row) for row in rows[:limit]], more=len(rows) > limit)
    return page | {"pauses": [_pause(row) for row in pauses]}


@post("/lanes/pause", scope="manage", status_code=200, operation_class=operation("Pause"))
async def pause_lanes(request: AnyRequest) -> dict[str, Any]:
    """Stop the tenant's mail to a site, of a stream or of a lane; again changes reason and end."""
    new = read_struct((await read_json(request)).value, NewPause)
    scope, name = new.chosen()
    need_target(caller_of(request), "" if scope == "site" else name.partition("/")[0])
    async with acting_as(database_of(request), caller_of(request)) as connection:
        made = await store.pause(
            connection, scope, name, reason=new.reason, until=shapes.coming(new.until, "until")
        )
        (row,) = await store.paused(connection, scope, made)
    return _pause(row)


@post("/lanes/resume", scope="manage", status_code=200, operation_class=operation("Resume"))
async def resume_lanes(request: AnyRequest) -> dict[str, Any]:
    """End a pause of the tenant's."""
    target = read_struct((await read_json(request)).value, Target)
    scope, name = target.chosen()
    need_target(caller_of(request), "" if scope == "site" else name.partition("/")[0])
    async with acting_as(database_of(request), caller_of(request)) as connection:
        ended = await store.resume(connection, scope, name, reason=target.reason)
    return {"object": "pause", "scope": scope, "name": ended, "resumed": True}


def _place(after: str | None) -> tuple[str, str, str] | None:
    if after is None:
        return None
    stream, _, rest = after.partition("/")
    priority, _, site = rest.partition("/")
    if priority not in PRIORITIES or not site:
        raise Refused("invalid_parameter", "/after", "must be the id of an item of the list")
    return stream, priority, site


def _lane(row: Any) -> dict[str, Any]:
    stopped = None
    if row.kind is not None:
        stopped = {
            "by": row.kind,
            "scope": row.scope,
            "name": row.stopped_name,
            "until": shapes.moment(row.until),
            "waits_for": row.words,
        }
    return {
        "object": "lane",
        "id": row.name,
        "stream": row.stream,
        "priority": row.priority,
        "site": row.site,
        "changed_at": shapes.moment(row.changed_at),
        "stopped": stopped,
    }


def _pause(row: Any) -> dict[str, Any]:
    return {
        "object": "pause",
        "scope": row.scope,
        "name": row.name,
        "fleet": row.fleet,
        "reason": row.reason,
        "until": shapes.moment(row.until),
        "paused_at": shapes.moment(row.paused_at),
        "paused_by": row.paused_by,
    }
