"""`/emails`: send, batch, look up, list, reschedule, cancel. Resend's routes, answers and status codes.

What can go wrong beyond the body: the idempotency key is in use by a request under way (409), or it is too
late to change anything (422 `too_late`, where Resend's SDKs would read a 200 as done).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
import structlog
from litestar import Request, Response, get, patch, post

from pgmail.access.reach import need_reach, streams_of
from pgmail.api import params, shapes
from pgmail.api.bodies import Body, aside, read_json, read_struct
from pgmail.api.intake import ReadyBatch, explain, ready_batch
from pgmail.api.openapi import operation
from pgmail.api.params import CHANGE, caller_of, database_of, path_id, sealer_of
from pgmail.api.traced import HEADER, carry
from pgmail.domain import address as addresses
from pgmail.domain import ids, when
from pgmail.domain.states import State
from pgmail.errors import KeyMissing, Refused, SealBroken
from pgmail.seals import TenantSeal
from pgmail.store import emails as store
from pgmail.store.keys import Caller
from pgmail.store.tenant import acting_as

AnyRequest = Request[Any, Any, Any]
Act = Callable[[store.Connection, UUID, str | None], Awaitable[dict[str, Any]]]
log = structlog.get_logger()

_FILTERS = ("state", "tag", "stream", "recipient", "created_after", "created_before")
_KEY = {"Idempotency-Key": "1 to 256 printable ASCII characters; kept for 24 hours"}
_MODE = {"x-batch-validation": "strict (the default) or permissive"}


class Reschedule(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a PATCH. Resend's SDK repeats the id."""

    scheduled_at: str
    id: str | None = None


class Why(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a cancel, hold or release; it may be empty."""

    reason: str | None = None


@post("/emails", scope="send", test=True, status_code=200, operation_class=operation("Email", headers=_KEY))
async def send_email(request: AnyRequest) -> Response[dict[str, str]]:
    """Enqueue one email."""
    body = await read_json(request)
    if request.app.state.tracing is not None:
        carry(body.value, request.headers.get(HEADER))
    key = request.headers.get("idempotency-key")
    made = await request.app.state.enqueue(caller_of(request), body, key)
    return Response({"id": made.id}, headers=made.headers)


@post(
    "/emails/batch",
    scope="send",
    test=True,
    status_code=200,
    operation_class=operation("Batch", headers=_KEY | _MODE),
)
async def send_batch(request: AnyRequest) -> Response[dict[str, Any]]:
    """Enqueue up to 1,000 emails: all or nothing, or in permissive mode the good ones."""
    mode = request.headers.get("x-batch-validation", "strict").lower()
    if mode not in {"strict", "permissive"}:
        raise Refused("invalid_parameter", "/x-batch-validation", "must be strict or permissive")
    strict, now = mode == "strict", datetime.now(UTC)
    body = await read_json(request)
    if request.app.state.tracing is not None:
        carry(body.value, request.headers.get(HEADER))
    key = request.headers.get("idempotency-key")
    sealer, caller, again = sealer_of(request), caller_of(request), False
    request.app.state.doorman.glance(caller, body.value)
    limits: dict[str, str] | None = None
    try:
        while True:
            seal = await sealer.of(caller)
            ready = await aside(body.size, _ready, caller, body, key, now, strict, seal)
            if limits is None:
                limits = await request.app.state.doorman.let_in(caller, body.value)
            try:
                rows = await store.send_many(
                    database_of(request), caller, ready.json, strict=strict, key=key, keyed=ready.keyed
                )
                break
            except Refused as fault:
                # A stream may be sealed since a moment that is not known here yet.
                if fault.code != "sealing_required" or again or not sealer.forget(caller):
                    raise
                again = True
    except Refused:
        # Words that say more, should the law here have found it too.
        await aside(body.size, _ready, caller, body._replace(plain=False), key, now, strict, None)
        raise
    answer: dict[str, Any] = {"data": [{"id": row.id} for row in rows if row.id is not None]}
    if not strict:
        bad = [row for row in rows if row.id is None]
        answer["errors"] = await aside(body.size, _refusals, bad, ready.faults, body, key, now)
    return Response(answer, headers=limits)


@get("/emails", scope="read", operation_class=operation(query=(*_FILTERS, *params.PAGING)))
async def list_emails(request: AnyRequest) -> dict[str, Any]:
    """List emails, newest first. A search that looked long enough says in `next` where the next one goes on."""
    given = params.query(request, *_FILTERS, *params.PAGING)
    page, chosen = params.page_of(given), _filter(given)
    caller = caller_of(request)
    streams = streams_of(caller, chosen.stream)
    async with acting_as(database_of(request), caller) as connection:
        found = await store.listing(connection, chosen, page, streams, only_tests=caller.test)
    answer = shapes.listed([shapes.email_item(row) for row in found.rows], more=found.more)
    return answer if found.place is None else answer | {"next": str(found.place)}


@get("/emails/{id:str}", scope="read", operation_class=operation(path="id"))
async def get_email(request: AnyRequest) -> dict[str, Any]:
    """Show an email, with each of its recipients; the id may be one recipient's."""
    wanted = path_id(request)
    async with acting_as(database_of(request), caller_of(request)) as connection:
        await need_reach(connection, caller_of(request), [wanted])
        recipients = await store.recipients(connection, wanted)
        message = await store.message(connection, recipients[0].message_id) if recipients else None
    if message is None:
        raise Refused("not_found", "/id", f"the email {wanted} is kept no longer", 404)
    content, closed = msgspec.json.decode(message.content), message.key_id is not None
    if closed and (seal := await sealer_of(request).of(caller_of(request))) is not None:
        try:
            content, closed = seal.content(message.content, message.key_id, message.id), False
        except (KeyMissing, SealBroken) as why:
            log.warning("sealed email not shown", id=str(message.id), error=str(why))
    return shapes.email(message, content, recipients, closed=closed)


@patch("/emails/{id:str}", scope=CHANGE, test=True, operation_class=operation("Reschedule", path="id"))
async def update_email(request: AnyRequest) -> dict[str, Any]:
    """Reschedule what is not being sent or settled."""
    wanted = path_id(request)
    body = read_struct((await read_json(request)).value, Reschedule)
    if body.id is not None and body.id != str(wanted):
        raise Refused("invalid_body", "/id", "is not the id in the path")
    try:
        at = when.parse(body.scheduled_at, datetime.now(UTC))
    except ValueError as error:
        raise Refused("invalid_time", "/scheduled_at", str(error)) from None
    async with acting_as(database_of(request), caller_of(request)) as connection:
        await need_reach(connection, caller_of(request), [wanted], change=True)
        answer = await store.reschedule(connection, wanted, at)
    return _changed(wanted, answer, "rescheduled")


@post(
    "/emails/{id:str}/cancel",
    scope=CHANGE,
    test=True,
    status_code=200,
    operation_class=operation("Reason", path="id"),
)
async def cancel_email(request: AnyRequest) -> dict[str, Any]:
    """Cancel what is not being sent or settled. Cancelling twice is fine."""
    wanted, answer = await _act(request, store.cancel)
    return _changed(wanted, answer, "cancelled")


@post(
    "/emails/{id:str}/hold",
    scope="manage",
    test=True,
    status_code=200,
    operation_class=operation("Reason", path="id"),
)
async def hold_email(request: AnyRequest) -> dict[str, Any]:
    """Stop what is not being sent or settled, until it is released. Holding twice is fine."""
    wanted, answer = await _act(request, store.hold)
    return _changed(wanted, answer, "held")


@post(
    "/emails/{id:str}/release",
    scope="manage",
    test=True,
    status_code=200,
    operation_class=operation("Reason", path="id"),
)
async def release_email(request: AnyRequest) -> dict[str, Any]:
    """Let what is held go again, at its old time. What is held in doubt is refused (409 `in_doubt`)."""
    wanted, answer = await _act(request, store.release)
    if answer["status"] == "busy":
        raise Refused("busy", "/id", "another transaction is changing it at this moment: ask again", 409)
    if not answer["released"]:
        raise Refused("not_held", "/id", "no recipient is held", 409)
    return {
        "object": "email", "id": str(wanted), "status": answer["status"], "reached": answer["released"],
        "busy": answer["busy"], "not_held": answer["not_held"], "in_doubt": answer["in_doubt"],
    }  # fmt: skip


@get("/emails/{id:str}/events", scope="read", operation_class=operation(path="id"))
async def list_events(request: AnyRequest) -> dict[str, Any]:
    """Tell the journey of an email, or of one recipient, oldest first."""
    wanted = path_id(request)
    async with acting_as(database_of(request), caller_of(request)) as connection:
        await need_reach(connection, caller_of(request), [wanted])
        rows = await store.events(connection, wanted)
    return shapes.listed([shapes.event(row) for row in rows])


def _ready(  # noqa: PLR0917 - as `aside` hands them on
    caller: Caller, body: Body, key: str | None, now: datetime, strict: bool, seal: TenantSeal | None
) -> ReadyBatch:
    return ready_batch(body.value, key, now, strict=strict, plain=body.plain, seal=seal, caller=caller)


def _refusals(
    rows: list[Any], early: dict[int, Refused], body: Body, key: str | None, now: datetime
) -> list[dict[str, Any]]:
    """Say what was wrong with each of these items, as found here or by SQL."""
    answer = []
    for row in rows:
        fault = early.get(row.position) or explain(
            Refused(row.code, row.field, row.message), body.value[row.position], key, now
        )
        answer.append(
            {"index": row.position, "message": str(fault), "code": fault.code, "field": fault.field}
        )
    return answer


async def _act(request: AnyRequest, act: Act) -> tuple[UUID, dict[str, Any]]:
    """Do something about an email, or one recipient of it, for the reason of the body; its id, and what SQL answers."""
    wanted, caller = path_id(request), caller_of(request)
    body = read_struct((await read_json(request, empty={})).value or {}, Why)
    async with acting_as(database_of(request), caller) as connection:
        await need_reach(connection, caller, [wanted], change=True)
        return wanted, await act(connection, wanted, body.reason)


def _changed(id: UUID, answer: dict[str, Any], key: str) -> dict[str, Any]:
    if not answer[key]:
        because = f"no recipient could be {key}: each is being sent or is settled"
        raise Refused("too_late", "/id", because)
    return {
        "object": "email",
        "id": str(id),
        "status": answer["status"],
        "reached": answer[key],
        "too_late": answer["too_late"],
    }


def _filter(given: dict[str, str]) -> store.Filter:
    """Return the filter of a query. Raises Refused `invalid_parameter`."""
    state, recipient, tag = given.get("state"), given.get("recipient"), given.get("tag")
    if state is not None and state not in set(State):
        raise Refused("invalid_parameter", "/state", f"must be one of {', '.join(State)}")
    if tag is not None and ":" not in tag:
        raise Refused("invalid_parameter", "/tag", "must be name:value")
    if recipient is not None:
        try:
            recipient = addresses.parse(recipient).address
        except ValueError as error:
            raise Refused("invalid_parameter", "/recipient", str(error)) from None
    since = params.moment_of(given, "created_after")
    until = params.moment_of(given, "created_before")
    name, _, value = (tag or "").partition(":")
    return store.Filter(
        state=None if state is None else State(state),
        tag=None if tag is None else (name, value),
        stream=given.get("stream"),
        recipient=recipient,
        above=None if since is None else UUID(int=ids.floor(since).int - 1),
        below=None if until is None else ids.floor(until),
    )
