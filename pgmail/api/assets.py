"""`/assets`: files that are stored once and attached by name.

What can go wrong: replacing a file changes what mail that waits will carry. An asset's name is a promise;
a new file that is not a correction deserves a new name.
"""

from __future__ import annotations

import mimetypes
from typing import Any

import msgspec
from litestar import Request, get, post

from pgmail.api import params, shapes
from pgmail.api.bodies import aside, read_json, read_struct
from pgmail.api.openapi import operation
from pgmail.api.params import SEE, caller_of, database_of
from pgmail.domain.check_attachments import MAX_NAME, check_content_type, decode
from pgmail.domain.check_body import control_in
from pgmail.errors import Refused
from pgmail.store import assets as store
from pgmail.store.tenant import acting_as

AnyRequest = Request[Any, Any, Any]


class NewAsset(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a POST. `filename` defaults to the name, `content_type` goes by the filename."""

    name: str
    content: str | list[int]
    filename: str | None = None
    content_type: str | None = None


@post("/assets", scope="manage", status_code=200, operation_class=operation("Asset"))
async def save_asset(request: AnyRequest) -> dict[str, Any]:
    """Store a file under a name, or another in its place."""
    body = await read_json(request)
    new = await aside(body.size, read_struct, body.value, NewAsset)
    octets = await aside(body.size, _octets, new.content)
    filename = _text(new.filename, "filename") or new.name
    given = _text(new.content_type, "content_type")
    if given is not None and (fault := check_content_type(given)):
        raise Refused("invalid_attachment", "/content_type", fault)
    content_type = given or mimetypes.guess_type(filename)[0] or "application/octet-stream"
    async with acting_as(database_of(request), caller_of(request)) as connection:
        await store.save(connection, new.name, filename, content_type, octets)
        row = await store.get(connection, new.name)
    return _asset(row)


@get("/assets", scope=SEE, operation_class=operation(query=("limit", "after")))
async def list_assets(request: AnyRequest) -> dict[str, Any]:
    """List assets by name; `after` is a name."""
    given = params.query(request, "limit", "after")
    limit = params.limit_of(given)
    async with acting_as(database_of(request), caller_of(request)) as connection:
        rows = await store.listing(connection, limit=limit + 1, after=given.get("after"))
    return shapes.listed([_asset(row) for row in rows[:limit]], more=len(rows) > limit)


@get("/assets/{name:str}", scope=SEE, operation_class=operation(path="name"))
async def get_asset(request: AnyRequest) -> dict[str, Any]:
    """Tell what is known of an asset."""
    name = params.path_name(request)
    async with acting_as(database_of(request), caller_of(request)) as connection:
        row = await store.get(connection, name)
    if row is None:
        raise Refused("not_found", "/name", f"no such asset: {name[:128]!r}", 404)
    return _asset(row)


def _octets(content: str | list[int]) -> bytes:
    try:
        return decode(content)
    except ValueError as error:
        raise Refused("invalid_attachment", "/content", str(error)) from None


def _text(text: str | None, key: str) -> str | None:
    """Return a text that may stand in a header of the mail, or None if there is none."""
    if text is None:
        return None
    if not text.strip(" ") or len(text.encode()) > MAX_NAME:
        raise Refused("invalid_attachment", f"/{key}", f"must be 1 to {MAX_NAME} octets, not only spaces")
    if control := control_in(text):
        raise Refused("invalid_attachment", f"/{key}", f"has a control character ({control})")
    return text


def _asset(row: Any) -> dict[str, Any]:
    return {
        "object": "asset",
        "id": row.name,
        "name": row.name,
        "filename": row.filename,
        "content_type": row.content_type,
        "size_bytes": row.size_bytes,
        "created_at": shapes.moment(row.created_at),
        "created_by": row.created_by,
    }
