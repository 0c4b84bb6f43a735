"""`/streams`: how mail of one kind is sent, retried and limited.

What can go wrong: a stream is made by a PUT to a name that is new, so a misspelt name makes another stream.
The answer shows all of its settings, which tells.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from litestar import Request, get, put
from msgspec import UNSET, Meta, UnsetType

from pgmail.api import params, shapes
from pgmail.api.bodies import read_json, read_struct
from pgmail.api.openapi import operation
from pgmail.api.params import SEE, caller_of, database_of
from pgmail.domain.keylimits import need_stream
from pgmail.errors import Refused
from pgmail.store import streams as store
from pgmail.store.tenant import acting_as

AnyRequest = Request[Any, Any, Any]

_Seconds = Annotated[float, Meta(gt=0, le=31_536_000)]
_RelayName = Annotated[str, Meta(pattern="^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]


class WeightedRelay(msgspec.Struct, forbid_unknown_fields=True):
    """One of several relays that share a stream's mail by weight."""

    name: _RelayName
    weight: Annotated[float, Meta(ge=0.001, le=1_000)]


_Relays = Annotated[list[_RelayName | WeightedRelay], Meta(min_length=1, max_length=16)]


class StreamSettings(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """The body of a PUT: what to set. What is left out stays as it is, or gets its default when new."""

    priority: Literal["high", "normal", "low"] | UnsetType = UNSET
    relay: _RelayName | _Relays | UnsetType = UNSET
    on_doubt: Literal["resend", "hold"] | UnsetType = UNSET
    trace: Literal["full", "lean"] | UnsetType = UNSET
    retry_base_seconds: _Seconds | UnsetType = UNSET
    retry_factor: Annotated[float, Meta(ge=1, le=1_000)] | UnsetType = UNSET
    retry_cap_seconds: _Seconds | UnsetType = UNSET
    retry_jitter: Annotated[float, Meta(ge=0, le=1)] | UnsetType = UNSET
    max_attempts: Annotated[int, Meta(ge=1, le=1_000)] | UnsetType = UNSET
    max_age_seconds: Annotated[int, Meta(ge=1, le=31_536_000)] | UnsetType = UNSET
    suppress_bounced: bool | UnsetType = UNSET
    max_queued: Annotated[int, Meta(ge=0, le=1_000_000_000_000)] | UnsetType | None = UNSET
    keep_content_days: Annotated[int, Meta(ge=1, le=36_500)] | UnsetType | None = UNSET
    seal: Literal["off", "where_possible", "required"] | UnsetType = UNSET


@get("/streams", scope=SEE, operation_class=operation())
async def list_streams(request: AnyRequest) -> dict[str, Any]:
    """List all streams by name."""
    async with acting_as(database_of(request), caller_of(request)) as connection:
        rows = await store.listing(connection)
    return shapes.listed([_stream(row) for row in rows])


@get("/streams/{name:str}", scope=SEE, operation_class=operation(path="name"))
async def get_stream(request: AnyRequest) -> dict[str, Any]:
    """Show one stream."""
    name = params.path_name(request)
    async with acting_as(database_of(request), caller_of(request)) as connection:
        row = await store.get(connection, name)
    if row is None:
        raise Refused("not_found", "/name", f"no such stream: {name[:63]!r}", 404)
    return _stream(row)


@put("/streams/{name:str}", scope="manage", operation_class=operation("Stream", path="name"))
async def save_stream(request: AnyRequest) -> dict[str, Any]:
    """Create a stream, or change one."""
    name = params.path_name(request)
    need_stream(name, caller_of(request).streams)
    body = read_struct((await read_json(request, empty={})).value, StreamSettings)
    async with acting_as(database_of(request), caller_of(request)) as connection:
        await store.save(connection, name, msgspec.to_builtins(body))
        row = await store.get(connection, name)
    return _stream(row)


def _stream(row: Any) -> dict[str, Any]:
    fields: dict[str, Any] = row._asdict()
    return {"object": "stream", "id": row.name} | fields | {"created_at": shapes.moment(row.created_at)}
