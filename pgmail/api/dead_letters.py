"""`/dead-letters`: what pgmail gave up on, and what a person decides about it.

Retry and discard take ids (of recipients or of emails) or a filter, up to a thousand dead letters a call;
`has_more` says that there are others. What can go wrong: a filter that means everything by accident (`choice`); an
unknown key is refused.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any
from uuid import UUID

import msgspec
from litestar import Request, get, post
from msgspec import Meta

from pgmail.access.reach import need_reach, streams_of, within_reach
from pgmail.api import params, shapes
from pgmail.api.bodies import read_json, read_struct
from pgmail.api.choice import choose
from pgmail.api.openapi import operation
from pgmail.api.params import SEE, caller_of, database_of
from pgmail.store import emails as store
from pgmail.store.tenant import acting_as

AnyRequest = Request[Any, Any, Any]
Act = Callable[[store.Connection, Sequence[UUID], str | None], Awaitable[int]]

_FILTERS = ("stream", "site", "reason", "recipient", "text", "template", "died_after", "died_before")


class Which(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a retry or discard: `ids` or `filter`, and why (for the record)."""

    ids: Annotated[list[UUID], Meta(max_length=store.MAX_ACTS)] | None = None
    filter: store.DeadFilter | None = None
    reason: str | None = None


@get("/dead-letters", scope=SEE, operation_class=operation(query=(*_FILTERS, *params.PAGING)))
async def list_dead_letters(request: AnyRequest) -> dict[str, Any]:
    """List dead letters, the newest email first."""
    given = params.query(request, *_FILTERS, *params.PAGING)
    page = params.page_of(given)
    chosen = store.DeadFilter(
        stream=given.get("stream"),
        site=given.get("site"),
        reason=given.get("reason"),
        recipient=given.get("recipient"),
        text=given.get("text"),
        template=given.get("template"),
        died_after=params.moment_of(given, "died_after"),
        died_before=params.moment_of(given, "died_before"),
    )
    chosen = within_reach(caller_of(request), chosen)
    streams = streams_of(caller_of(request), chosen.stream)
    async with acting_as(database_of(request), caller_of(request)) as connection:
        rows, more = await store.dead_letters(connection, chosen, page, streams)
    return shapes.listed([shapes.dead_letter(row) for row in rows], more=more)


@post(
    "/dead-letters/retry",
    scope="manage",
    test=True,
    status_code=200,
    operation_class=operation("DeadLetters"),
)
async def retry_dead_letters(request: AnyRequest) -> dict[str, Any]:
    """Put dead letters back into the queue, due now."""
    return await _act(request, "retried", store.retry)


@post(
    "/dead-letters/discard",
    scope="manage",
    test=True,
    status_code=200,
    operation_class=operation("DeadLetters"),
)
async def discard_dead_letters(request: AnyRequest) -> dict[str, Any]:
    """Give dead letters up; they end as cancelled."""
    return await _act(request, "discarded", store.discard)


async def _act(request: AnyRequest, word: str, act: Act) -> dict[str, Any]:
    which = read_struct((await read_json(request)).value, Which)
    caller = caller_of(request)
    chosen = choose(caller, which.ids, which.filter)
    async with acting_as(database_of(request), caller) as connection:
        if caller.test:
            await need_reach(connection, caller, which.ids or [])
        found, more = await store.dead_ids(connection, chosen.wanted, streams=chosen.streams)
        done = await act(connection, found, which.reason)
    return {"object": "dead_letters", word: done, "has_more": more}
