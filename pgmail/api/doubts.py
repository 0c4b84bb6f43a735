"""`/in-doubt`: mail that may have been sent, held until a person says what is to become of it.

Resolving takes ids (of recipients or of emails) or a filter, up to a thousand recipients a call; `has_more` says
that there may be others. What can go wrong: a filter that means everything by accident (`choice`); an unknown key
is refused.
"""

from __future__ import annotations

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
from pgmail.store import doubts as store
from pgmail.store.emails import MAX_ACTS
from pgmail.store.tenant import acting_as

AnyRequest = Request[Any, Any, Any]

_FILTERS = ("stream", "site", "relay", "worker", "recipient", "doubted_after", "doubted_before")


class Resolve(msgspec.Struct, forbid_unknown_fields=True):
    """The body: how, `ids` or `filter`, and why (for the record)."""

    how: store.How
    ids: Annotated[list[UUID], Meta(max_length=MAX_ACTS)] | None = None
    filter: store.DoubtFilter | None = None
    reason: str | None = None


@get("/in-doubt", scope=SEE, operation_class=operation(query=(*_FILTERS, *params.PAGING)))
async def list_in_doubt(request: AnyRequest) -> dict[str, Any]:
    """List mail that is held in doubt, the newest email first."""
    given = params.query(request, *_FILTERS, *params.PAGING)
    page = params.page_of(given)
    chosen = store.DoubtFilter(
        stream=given.get("stream"),
        site=given.get("site"),
        relay=given.get("relay"),
        worker=params.number_of(given, "worker"),
        recipient=given.get("recipient"),
        doubted_after=params.moment_of(given, "doubted_after"),
        doubted_before=params.moment_of(given, "doubted_before"),
    )
    chosen = within_reach(caller_of(request), chosen)
    streams = streams_of(caller_of(request), chosen.stream)
    async with acting_as(database_of(request), caller_of(request)) as connection:
        rows, more = await store.listing(connection, chosen, page, streams)
    return shapes.listed([shapes.doubt(row) for row in rows], more=more)


@post("/in-doubt/resolve", scope="manage", test=True, status_code=200, operation_class=operation("InDoubt"))
async def resolve_in_doubt(request: AnyRequest) -> dict[str, Any]:
    """End a doubt: take the mail for sent, or send it again under the same Message-ID."""
    body = read_struct((await read_json(request)).value, Resolve)
    caller = caller_of(request)
    chosen = choose(caller, body.ids, body.filter)
    async with acting_as(database_of(request), caller) as connection:
        await need_reach(connection, caller, body.ids or [])
        done, more = await store.resolve(connection, body.how, chosen.wanted, body.reason, chosen.streams)
    return {"object": "in_doubt", "resolved": done, "has_more": more}
