"""`/suppressions`: addresses that get no mail, from one stream or from all.

An entry's `id` is its address, with ` stream` behind it where it holds for one stream only; a list goes on
after an id. Entries are of real people, so a key for tests does not see them. What can go wrong: an address is
compared in its normal form, which the answers show.
"""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request, delete, get, post
from litestar.response import Stream

from pgmail.access.reach import need_target
from pgmail.api import params, shapes
from pgmail.api.bodies import read_json, read_struct
from pgmail.api.openapi import operation
from pgmail.api.params import SEE, caller_of, database_of
from pgmail.domain import address as addresses
from pgmail.errors import Refused
from pgmail.store import suppressions as store
from pgmail.store.tenant import acting_as

AnyRequest = Request[Any, Any, Any]

MOST = 1_000  # entries a request
_FILTERS = ("address", "stream", "reason")


class NewSuppression(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a POST. Resend's SDK calls the address `email`; `stream` empty is all streams."""

    address: str | None = None
    email: str | None = None
    stream: str = ""
    reason: str = "manual"
    source: str | None = None
    expires_at: str | None = None


@post("/suppressions", scope="manage", status_code=200, operation_class=operation("Suppressions"))
async def add_suppression(request: AnyRequest) -> dict[str, Any]:
    """Suppress an address, or up to 1,000 in an array, all or none; an entry that is there is replaced."""
    value = (await read_json(request)).value
    if isinstance(value, list):
        return await _add_many(request, value)
    new = read_struct(value, NewSuppression)
    given = _given(new)
    need_target(caller_of(request), new.stream)
    async with acting_as(database_of(request), caller_of(request)) as connection:
        address = await store.add(
            connection,
            given,
            reason=new.reason,
            source=new.source,
            stream=new.stream,
            expires_at=shapes.coming(new.expires_at, "expires_at"),
        )
        rows = await store.listing(connection, limit=1, address=address, stream=new.stream)
    return _suppression(rows[0])


async def _add_many(request: AnyRequest, values: list[Any]) -> dict[str, Any]:
    if not 1 <= len(values) <= MOST:
        raise Refused("batch_too_large", "", f"{len(values)} entries; 1 to {MOST:,} at once", 413)
    entries = []
    for position, value in enumerate(values):
        try:
            new = read_struct(value, NewSuppression)
            need_target(caller_of(request), new.stream)
            entries.append(
                store.Entry(
                    _given(new),
                    new.stream,
                    new.reason,
                    new.source,
                    expires_at=shapes.coming(new.expires_at, "expires_at"),
                )
            )
        except Refused as refused:
            raise Refused(
                refused.code, f"/{position}{refused.field}", refused.message, refused.status
            ) from None
    async with acting_as(database_of(request), caller_of(request)) as connection:
        answer = await store.add_many(connection, entries)
    return {
        "object": "list",
        "data": [
            {"object": "suppression", "id": _id(*pair), "address": pair[0], "stream": pair[1] or None}
            for pair in answer.entries
        ],
        "added": answer.added, "changed": answer.changed, "unchanged": answer.unchanged,
    }  # fmt: skip


@get(
    "/suppressions/export",
    scope=SEE,
    test=False,
    media_type="text/csv",
    operation_class=operation(query=("stream", "reason")),
)
async def export_suppressions(request: AnyRequest) -> Stream:
    """Write all entries that suppress something as CSV, in their order."""
    given = params.query(request, "stream", "reason")
    database, caller = database_of(request), caller_of(request)
    chosen = {"stream": given.get("stream"), "reason": given.get("reason")}
    return Stream(await store.export(lambda: acting_as(database, caller), **chosen), media_type="text/csv")


@get("/suppressions", scope=SEE, test=False, operation_class=operation(query=(*_FILTERS, "limit", "after")))
async def list_suppressions(request: AnyRequest) -> dict[str, Any]:
    """List entries by address; `after` is the id of one."""
    given = params.query(request, *_FILTERS, "limit", "after")
    limit = params.limit_of(given)
    address, after = given.get("address"), given.get("after")
    async with acting_as(database_of(request), caller_of(request)) as connection:
        rows = await store.listing(
            connection,
            limit=limit + 1,
            after=None if after is None else _pair(after),
            address=None if address is None else _normal(address),
            stream=given.get("stream"),
            reason=given.get("reason"),
        )
    return shapes.listed([_suppression(row) for row in rows[:limit]], more=len(rows) > limit)


@delete(
    "/suppressions/{name:path}",
    scope="manage",
    status_code=200,
    operation_class=operation(path="name", query=("stream",)),
)
async def remove_suppression(request: AnyRequest) -> dict[str, Any]:
    """Let an address have mail again; the path is an entry's id, or an address with `?stream=`."""
    given = params.query(request, "stream")
    address, stream = _pair(params.path_name(request))
    stream = given.get("stream", stream)
    need_target(caller_of(request), stream)
    async with acting_as(database_of(request), caller_of(request)) as connection:
        if not await store.remove(connection, address, stream=stream):
            where = f"on stream {stream!r}" if stream else "on all streams"
            raise Refused("not_found", "/address", f"{address[:254]} is not suppressed {where}", 404)
    return {"object": "suppression", "id": _id(_normal(address), stream), "deleted": True}


def _given(new: NewSuppression) -> str:
    given = new.address or new.email
    if not given:
        raise Refused("missing_field", "/address", "is required")
    return given


def _id(address: str, stream: str) -> str:
    return f"{address} {stream}" if stream else address


def _pair(entry: str) -> tuple[str, str]:
    """Take an id apart; the part of an address behind its last space has an @, a stream's name never."""
    address, space, stream = entry.rpartition(" ")
    return (address, stream) if space and "@" not in stream else (entry, "")


def _normal(text: str) -> str:
    try:
        return addresses.parse(text).address
    except ValueError as error:
        raise Refused("invalid_address", "/address", str(error)) from None


def _suppression(row: Any) -> dict[str, Any]:
    return {
        "object": "suppression",
        "id": _id(row.address, row.stream),
        "address": row.address,
        "email": row.address,
        "stream": row.stream or None,
        "reason": row.reason,
        "source": row.source,
        "created_at": shapes.moment(row.created_at),
        "created_by": row.created_by,
        "expires_at": shapes.moment(row.expires_at),
    }
