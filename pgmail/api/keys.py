"""`/keys`: make, list, rotate and revoke API keys, with a key that has the scope admin.

The first such key comes from the command line. What can go wrong: an admin key that makes one that may more than
itself. SQL looks the asking key up anew in each transaction and refuses that (`exceeds_key`); of keys that have
more than it, it lists and touches none.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

import msgspec
from litestar import Request, delete, get, post
from msgspec import Meta

from pgmail.api import shapes
from pgmail.api.bodies import read_json, read_struct
from pgmail.api.openapi import operation
from pgmail.api.params import caller_of, database_of, path_id
from pgmail.domain import keylimits
from pgmail.domain.keys import Scope
from pgmail.errors import Refused
from pgmail.store import keys as store
from pgmail.store.tenant import acting_as

AnyRequest = Request[Any, Any, Any]

MAX_OVERLAP_SECONDS = 366 * 86_400
_Names = Annotated[list[str], Meta(min_length=1, max_length=100)]


class NewKey(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a POST. What is left out is no limit, or that of the asking key."""

    name: Annotated[str, Meta(min_length=1, max_length=200)]
    scopes: Annotated[list[Scope], Meta(min_length=1, max_length=100)] | None = None
    test: bool | None = None
    streams: _Names | None = None
    from_domains: _Names | None = None
    networks: _Names | None = None
    expires_at: str | None = None


class Rotation(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a rotation; it may be empty. `overlap` is in seconds, a day if nothing is said."""

    overlap: Annotated[float, Meta(ge=0, le=MAX_OVERLAP_SECONDS)] = 86_400
    reason: str | None = None


@post("/keys", scope="admin", test=True, status_code=200, operation_class=operation("Key"))
async def create_key(request: AnyRequest) -> dict[str, Any]:
    """Make a key. It is in the answer and shown this once."""
    body = read_struct((await read_json(request)).value, NewKey)
    caller = caller_of(request)
    limits = store.Limits(
        scopes=body.scopes,
        test=caller.test if body.test is None else body.test,
        streams=body.streams,
        from_domains=_domains(body.from_domains),
        networks=body.networks,
        expires_at=None if body.expires_at is None else shapes.read_moment(body.expires_at, "expires_at"),
    )
    async with acting_as(database_of(request), caller) as connection:
        made = await store.create(connection, body.name, limits)
    return _made(made)


@get("/keys", scope="admin", operation_class=operation())
async def list_keys(request: AnyRequest) -> dict[str, Any]:
    """List keys, oldest first, those that ended too."""
    async with acting_as(database_of(request), caller_of(request)) as connection:
        rows = await store.listing(connection)
    return shapes.listed([_key(row._asdict()) for row in rows])


@post(
    "/keys/{id:str}/rotate",
    scope="admin",
    test=True,
    status_code=200,
    operation_class=operation("Rotation", path="id"),
)
async def rotate_key(request: AnyRequest) -> dict[str, Any]:
    """Make a key with the limits of another, which ends after the overlap."""
    wanted = path_id(request)
    body = read_struct((await read_json(request, empty={})).value or {}, Rotation)
    async with acting_as(database_of(request), caller_of(request)) as connection:
        made, ends = await store.rotate(connection, wanted, timedelta(seconds=body.overlap), body.reason)
    return _made(made) | {"replaces": str(wanted), "replaced_expires_at": shapes.moment(ends)}


@delete("/keys/{id:str}", scope="admin", test=True, status_code=200, operation_class=operation(path="id"))
async def revoke_key(request: AnyRequest) -> dict[str, Any]:
    """Revoke a key for good. Every process refuses it within a second."""
    wanted = path_id(request)
    async with acting_as(database_of(request), caller_of(request)) as connection:
        done = await store.revoke(connection, wanted, "by DELETE /keys")
    if not done:
        raise Refused("not_found", "/id", f"no valid key has the id {wanted}", 404)
    return {"object": "key", "id": str(wanted), "deleted": True}


def _domains(given: list[str] | None) -> list[str] | None:
    if given is None:
        return None
    found = []
    for position, domain in enumerate(given):
        try:
            found.append(keylimits.normalise(domain))
        except ValueError as error:
            raise Refused("invalid_domain", f"/from_domains/{position}", str(error)) from None
    return found


def _made(made: store.Made) -> dict[str, Any]:
    return _key(made._asdict())


def _key(fields: dict[str, Any]) -> dict[str, Any]:
    """Return a key as JSON: moments in ISO 8601, the id first."""
    moments = {name: shapes.moment(value) for name, value in fields.items() if name.endswith("_at")}
    return {"object": "key"} | fields | moments
