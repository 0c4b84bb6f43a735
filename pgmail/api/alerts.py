"""`/alerts`: what fires, silences; rules under `/alerts/rules`, who is told under `/alerts/targets`.

A tenant has rules and targets of its own: a rule of the fleet's name takes its place for that tenant. What concerns
the fleet is an operator's, and of it a tenant sees what its mail feels; where it is alone, all.

A key that is limited to streams reads, and changes nothing here: all of it is of every stream.

What can go wrong: a silence that everybody forgot. So a reason is required, `until` ends one by itself, and the list
of alerts shows all that hold.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec
from litestar import Request, delete, get, post, put

from pgmail import alerting
from pgmail.access.reach import need_all_streams
from pgmail.api import params, shapes
from pgmail.api.bodies import read_json, read_struct
from pgmail.api.openapi import operation
from pgmail.api.params import SEE, caller_of, database_of
from pgmail.domain.check_body import check_values
from pgmail.errors import Refused
from pgmail.store import alerts as store
from pgmail.store.tenant import acting_as

AnyRequest = Request[Any, Any, Any]

STATES = ("open", "firing", "pending", "resolved", "all")
_MOMENTS = (
    "since",
    "fired_at",
    "resolved_at",
    "told_at",
    "changed_at",
    "created_at",
    "failing_since",
    "until",
    "silenced_at",
)


class Unsilence(msgspec.Struct, forbid_unknown_fields=True):
    """The body that ends a silence: of every subject, or of one."""

    reason: str | None = None
    subject: str = "*"


class Silence(Unsilence, forbid_unknown_fields=True):
    """The body that makes one, and when it ends by itself."""

    until: str | None = None


@get("/alerts", scope=SEE, test=False, operation_class=operation(query=("state", "rule", "limit", "after")))
async def list_alerts(request: AnyRequest) -> dict[str, Any]:
    """List alerts, those that are open first, and all silences that hold."""
    given = params.query(request, "state", "rule", "limit", "after")
    limit, state = params.limit_of(given), given.get("state", "open")
    if state not in STATES:
        raise Refused("invalid_parameter", "/state", f"must be one of {', '.join(STATES)}")
    after = params.id_of(given, "after", params.ITEM)
    async with acting_as(database_of(request), caller_of(request)) as connection:
        rows = await store.listing(
            connection, state=state, rule=given.get("rule"), limit=limit + 1, after=after
        )
        silences = await store.silences(connection)
    page = shapes.listed([_shape("alert", row) for row in rows[:limit]], more=len(rows) > limit)
    return page | {"silences": [_shape("silence", row) for row in silences]}


@post(
    "/alerts/{name:str}/silence",
    scope="manage",
    status_code=200,
    operation_class=operation("Silence", path="name"),
)
async def silence_alert(request: AnyRequest) -> dict[str, Any]:
    """Tell nobody of a rule's alerts for a while; again changes reason and end."""
    need_all_streams(caller_of(request))
    name, given = params.path_name(request), read_struct((await read_json(request)).value, Silence)
    until = None if given.until is None else shapes.read_moment(given.until, "until")
    async with acting_as(database_of(request), caller_of(request)) as connection:
        await store.silence(connection, name, reason=given.reason, until=until, subject=given.subject)
    return {
        "object": "silence",
        "rule": name,
        "subject": given.subject,
        "reason": given.reason,
        "until": shapes.moment(until),
    }


@post(
    "/alerts/{name:str}/unsilence",
    scope="manage",
    status_code=200,
    operation_class=operation("Unsilence", path="name"),
)
async def unsilence_alert(request: AnyRequest) -> dict[str, Any]:
    """End a silence."""
    need_all_streams(caller_of(request))
    name, given = params.path_name(request), read_struct((await read_json(request)).value, Unsilence)
    async with acting_as(database_of(request), caller_of(request)) as connection:
        if not await store.unsilence(connection, name, reason=given.reason, subject=given.subject):
            raise Refused("not_silenced", "/name", f"{name[:63]} is not silenced", 404)
    return {"object": "silence", "rule": name, "subject": given.subject, "ended": True}


@get("/alerts/rules", scope=SEE, operation_class=operation())
async def list_rules(request: AnyRequest) -> dict[str, Any]:
    """List the rules that hold for the tenant."""
    params.query(request)
    async with acting_as(database_of(request), caller_of(request)) as connection:
        rows = await store.rules(connection)
    return shapes.listed([_shape("alert_rule", row) for row in rows])


@put("/alerts/rules/{name:str}", scope="manage", operation_class=operation("AlertRule", path="name"))
async def set_rule(request: AnyRequest) -> dict[str, Any]:
    """Change what is named of a rule, for this tenant; a new name makes one and needs its `kind`."""
    need_all_streams(caller_of(request))
    name, settings = params.path_name(request), (await read_json(request)).value
    if not isinstance(settings, dict):
        raise Refused("invalid_body", "", "must be an object")
    check_values(settings)
    settings = dict(settings)
    reason = settings.pop("reason", None)
    if reason is not None and not isinstance(reason, str):
        raise Refused("invalid_body", "/reason", "must be a text")
    async with acting_as(database_of(request), caller_of(request)) as connection:
        await store.set_rule(connection, name, settings, reason=reason)
        (row,) = [row for row in await store.rules(connection) if row.name == name]
    return _shape("alert_rule", row)


@delete("/alerts/rules/{name:str}", scope="manage", status_code=200, operation_class=operation(path="name"))
async def remove_rule(request: AnyRequest) -> dict[str, Any]:
    """Remove a rule of the tenant's own: the fleet's of that name holds again, if there is one."""
    need_all_streams(caller_of(request))
    name = params.path_name(request)
    async with acting_as(database_of(request), caller_of(request)) as connection:
        if not await store.remove_rule(connection, name):
            raise Refused("not_found", "/name", f"the tenant has no rule of its own named {name[:63]!r}", 404)
    return {"object": "alert_rule", "name": name, "deleted": True}


@get("/alerts/targets", scope=SEE, operation_class=operation())
async def list_targets(request: AnyRequest) -> dict[str, Any]:
    """List who is told, and how that goes; URLs and secrets are not shown."""
    params.query(request)
    async with acting_as(database_of(request), caller_of(request)) as connection:
        rows = await store.targets(connection)
    return shapes.listed([_shape("alert_target", row) for row in rows])


@post("/alerts/targets", scope="manage", status_code=200, operation_class=operation("AlertTarget"))
async def add_target(request: AnyRequest) -> dict[str, Any]:
    """Tell a webhook, a Slack-shaped URL or addresses of the tenant's alerts."""
    need_all_streams(caller_of(request))
    target = read_struct((await read_json(request)).value, alerting.Target)
    state = request.app.state
    async with acting_as(database_of(request), caller_of(request)) as connection:
        await alerting.add_target(connection, state.keks, state.hook_networks, target)
        (row,) = [row for row in await store.targets(connection) if row.name == target.name]
    return _shape("alert_target", row)


@delete("/alerts/targets/{name:str}", scope="manage", status_code=200, operation_class=operation(path="name"))
async def remove_target(request: AnyRequest) -> dict[str, Any]:
    """Tell it of nothing from now on."""
    need_all_streams(caller_of(request))
    name = params.path_name(request)
    async with acting_as(database_of(request), caller_of(request)) as connection:
        if not await store.remove_target(connection, name):
            raise Refused("not_found", "/name", f"no target is named {name[:63]!r}", 404)
    return {"object": "alert_target", "name": name, "deleted": True}


@post(
    "/alerts/targets/{name:str}/test", scope="manage", status_code=200, operation_class=operation(path="name")
)
async def test_target(request: AnyRequest) -> dict[str, Any]:
    """Have a test sent to it within seconds; the list of targets says how that went."""
    need_all_streams(caller_of(request))
    name = params.path_name(request)
    async with acting_as(database_of(request), caller_of(request)) as connection:
        id_ = await store.send_test(connection, name)
    return {"object": "alert_delivery", "id": str(id_), "target": name, "state": "waiting"}


def _shape(kind: str, row: Any) -> dict[str, Any]:
    fields: dict[str, Any] = row._asdict()
    for name in _MOMENTS:
        if isinstance(fields.get(name), datetime):
            fields[name] = shapes.moment(fields[name])
    if "id" in fields:
        fields["id"] = str(fields["id"])
    return {"object": kind} | fields
