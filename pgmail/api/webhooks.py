"""`/webhooks`: endpoints that are told of the tenant's events, in the shape of Resend's public API.

A webhook's secret is in the answer that made it, and nowhere else. What can go wrong: a key that may not have an
endpoint of its own; who may stands in `pgmail.hooks.asked`.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import Request, delete, get, patch, post
from msgspec import UNSET, Meta, UnsetType

from pgmail.api import params, shapes
from pgmail.api.bodies import read_json, read_struct
from pgmail.api.openapi import operation
from pgmail.api.params import database_of, path_id
from pgmail.domain.webhooks import MAX_OVERLAP_SECONDS
from pgmail.errors import Refused
from pgmail.hooks.asked import endpoints_of, manager_of, teller_of
from pgmail.hooks.endpoints import replay
from pgmail.store import hooks as store
from pgmail.store.tenant import acting_as

AnyRequest = Request[Any, Any, Any]

_Names = Annotated[list[str], Meta(min_length=1, max_length=100)]
_Tags = dict[str, str]
_OUTCOMES = ("delivered", "retrying", "failed", "dropped")


class NewWebhook(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a POST. Without `events` all of them; without `streams` and `tags` whatever they are."""

    endpoint: str
    events: _Names = msgspec.field(default_factory=lambda: ["email.*"])
    streams: _Names | None = None
    tags: _Tags | None = None
    description: str | None = None
    signing_secret: str | None = None


class WebhookChange(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a PATCH: what is named changes; `streams` and `tags` null are whatever they are."""

    endpoint: str | UnsetType = UNSET
    events: _Names | UnsetType = UNSET
    streams: _Names | UnsetType | None = UNSET
    tags: _Tags | UnsetType | None = UNSET
    description: str | UnsetType | None = UNSET
    status: str | UnsetType = UNSET
    reason: str | None = None


class SecretRotation(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a rotation; it may be empty. `overlap` is in seconds, a day if nothing is said."""

    overlap: Annotated[float, Meta(ge=0, le=MAX_OVERLAP_SECONDS)] = 86_400
    signing_secret: str | None = None
    reason: str | None = None


class Replay(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a replay. `outcome` is failed, if nothing is said; times are the events'. `dry_run` only counts."""

    since: str | None = None
    until: str | None = None
    type: str | None = None
    outcome: str | None = None
    event: str | None = None
    reason: str | None = None
    dry_run: bool = False


@post("/webhooks", status_code=200, operation_class=operation("Webhook"), opt={"scope": "manage"})
async def add_webhook(request: AnyRequest) -> dict[str, Any]:
    """Add an endpoint. Its `signing_secret` is in the answer, this once."""
    caller = teller_of(request)
    body = read_struct((await read_json(request)).value, NewWebhook)
    new = store.NewHook(
        url=body.endpoint,
        types=body.events,
        streams=body.streams,
        tags=body.tags,
        description=body.description,
    )
    async with acting_as(database_of(request), caller) as connection:
        id_, secret = await endpoints_of(request).add(connection, new, body.signing_secret)
        return _webhook(await store.get(connection, id_)) | {"signing_secret": secret}


@get("/webhooks", operation_class=operation(), opt={"scope": "manage"})
async def list_webhooks(request: AnyRequest) -> dict[str, Any]:
    """List endpoints, oldest first: how each does, and what waits for it."""
    caller = manager_of(request)
    params.query(request)
    async with acting_as(database_of(request), caller) as connection:
        rows = await store.listing(connection)
    return shapes.listed([_webhook(row) for row in rows])


@get("/webhooks/{id:str}", operation_class=operation(path="id"), opt={"scope": "manage"})
async def get_webhook(request: AnyRequest) -> dict[str, Any]:
    """One endpoint."""
    caller, wanted = manager_of(request), path_id(request)
    async with acting_as(database_of(request), caller) as connection:
        return _webhook(await store.get(connection, wanted))


@patch("/webhooks/{id:str}", operation_class=operation("WebhookChange", path="id"), opt={"scope": "manage"})
async def change_webhook(request: AnyRequest) -> dict[str, Any]:
    """Change an endpoint, or enable it again: it is called at once then."""
    caller, wanted = teller_of(request), path_id(request)
    body = read_struct((await read_json(request)).value, WebhookChange)
    changes = {
        name: value
        for name, value in msgspec.structs.asdict(body).items()
        if value is not UNSET and name != "reason"
    }
    async with acting_as(database_of(request), caller) as connection:
        await endpoints_of(request).change(connection, wanted, changes, body.reason)
        return _webhook(await store.get(connection, wanted))


@delete("/webhooks/{id:str}", status_code=200, operation_class=operation(path="id"), opt={"scope": "manage"})
async def remove_webhook(request: AnyRequest) -> dict[str, Any]:
    """Take an endpoint away, with what waits for it and its log."""
    caller, wanted = manager_of(request), path_id(request)
    async with acting_as(database_of(request), caller) as connection:
        await store.remove(connection, wanted)
    return {"object": "webhook", "id": str(wanted), "deleted": True}


@post(
    "/webhooks/{id:str}/rotate",
    status_code=200,
    operation_class=operation("SecretRotation", path="id"),
    opt={"scope": "manage"},
)
async def rotate_webhook(request: AnyRequest) -> dict[str, Any]:
    """Sign with a new secret from now on, and with the old one beside it until the overlap has passed."""
    caller, wanted = manager_of(request), path_id(request)
    body = read_struct((await read_json(request, empty={})).value or {}, SecretRotation)
    async with acting_as(database_of(request), caller) as connection:
        secret, ends = await endpoints_of(request).rotate(
            connection, wanted, body.overlap, secret=body.signing_secret, reason=body.reason
        )
        found = _webhook(await store.get(connection, wanted))
    return found | {"signing_secret": secret, "replaced_expires_at": shapes.moment(ends)}


@post(
    "/webhooks/{id:str}/test", status_code=200, operation_class=operation(path="id"), opt={"scope": "manage"}
)
async def test_webhook(request: AnyRequest) -> dict[str, Any]:
    """Send a sample event, signed as any; its deliveries tell what came of it, by `event`."""
    caller, wanted = manager_of(request), path_id(request)
    async with acting_as(database_of(request), caller) as connection:
        event = await store.test(connection, wanted)
    return {"object": "webhook_test", "id": str(wanted), "event": str(event)}


@post(
    "/webhooks/{id:str}/replay",
    status_code=200,
    operation_class=operation("Replay", path="id"),
    opt={"scope": "manage"},
)
async def replay_webhook(request: AnyRequest) -> dict[str, Any]:
    """Tell events of the log once more, under the same ids: those that failed, or as the filter says."""
    caller, wanted = manager_of(request), path_id(request)
    body = read_struct((await read_json(request, empty={})).value or {}, Replay)
    filter_ = {
        name: value
        for name, value in {
            "since": _moment(body.since, "since"),
            "until": _moment(body.until, "until"),
            "type": body.type,
            "outcome": body.outcome,
            "event": body.event,
        }.items()
        if value is not None
    }
    facts = {"object": "webhook_replay", "id": str(wanted), "dry_run": body.dry_run}
    if body.dry_run:
        async with acting_as(database_of(request), caller) as connection:
            count, complete = await store.count_replay(connection, wanted, filter_)
        return facts | {"replayed": count, "complete": complete}
    replayed = await replay(lambda: acting_as(database_of(request), caller), wanted, filter_, body.reason)
    return facts | {"replayed": replayed, "complete": True}


@get(
    "/webhooks/{id:str}/deliveries",
    operation_class=operation(
        path="id", query=("limit", "after", "event", "type", "outcome", "since", "until")
    ),
    opt={"scope": "manage"},
)
async def list_deliveries(request: AnyRequest) -> dict[str, Any]:
    """List calls to an endpoint, newest first: what was answered, in how many milliseconds, when it comes again."""
    caller, wanted = manager_of(request), path_id(request)
    given = params.query(request, "limit", "after", "event", "type", "outcome", "since", "until")
    limit = params.limit_of(given)
    if (outcome := given.get("outcome")) is not None and outcome not in _OUTCOMES:
        raise Refused("invalid_parameter", "/outcome", f"must be one of {', '.join(_OUTCOMES)}")
    filter_ = store.AttemptFilter(
        event=params.id_of(given, "event"),
        type=given.get("type"),
        outcome=outcome,
        since=params.moment_of(given, "since"),
        until=params.moment_of(given, "until"),
    )
    async with acting_as(database_of(request), caller) as connection:
        await store.get(connection, wanted)
        rows = await store.attempts(
            connection, wanted, filter_, limit=limit + 1, after=params.id_of(given, "after")
        )
    return shapes.listed([_delivery(row) for row in rows[:limit]], more=len(rows) > limit)


def _moment(text: str | None, field: str) -> str | None:
    return None if text is None else shapes.read_moment(text, field).isoformat()


def _webhook(row: Any) -> dict[str, Any]:
    return {
        "object": "webhook",
        "id": str(row.id),
        "endpoint": row.url,
        "events": row.types,
        "streams": row.streams,
        "tags": row.tags,
        "description": row.description,
        "status": "enabled" if row.enabled else "disabled",
        "reason": row.reason,
        "created_at": shapes.moment(row.created_at),
        "created_by": row.created_by,
        "failing_since": shapes.moment(row.failing_since),
        "rest_until": shapes.moment(row.rest_until),
        "last_error": row.last_error,
        "waiting": row.waiting,
        "oldest_waiting_at": shapes.moment(row.oldest_at),
        "secrets": row.secrets,
    }


def _delivery(row: Any) -> dict[str, Any]:
    return {
        "object": "webhook_delivery",
        "id": str(row.id),
        "at": shapes.moment(row.at),
        "event": str(row.event_id),
        "type": row.type,
        "event_at": shapes.moment(row.event_at),
        "email_id": None if row.email_id is None else str(row.email_id),
        "attempt": row.attempt,
        "outcome": row.outcome,
        "status": row.status,
        "ms": row.ms,
        "error": row.error,
        "answer": row.answer,
        "next_at": shapes.moment(row.next_at),
    }
