"""`/domains`: domains that the key's tenant sends from, in the shape of Resend's public API.

A domain is named by its name or its id. What can go wrong: verifying asks DNS, which takes up to five seconds;
the request waits, no transaction does. And a key that is limited to streams or domains: which domains there are
concerns all of the tenant's mail, so it may look and change nothing.
"""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request, delete, get, post

from pgmail.access.reach import need_all_domains
from pgmail.api import params, shapes
from pgmail.api.bodies import read_json, read_struct
from pgmail.api.openapi import operation
from pgmail.api.params import caller_of, database_of
from pgmail.errors import Refused
from pgmail.store import domains as store
from pgmail.store.tenant import acting_as
from pgmail.transport import txt

AnyRequest = Request[Any, Any, Any]

# Resend's words; "failed" is its own.
_STATES = {"pending": "pending", "verified": "verified", "failed": "failed"}


class NewDomain(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a POST. `region` and `custom_return_path` are Resend's; they mean nothing here."""

    name: str
    region: str | None = None
    custom_return_path: str | None = None


@post("/domains", status_code=200, operation_class=operation("Domain"), opt={"scope": "manage"})
async def add_domain(request: AnyRequest) -> dict[str, Any]:
    """Add a domain and answer the record to publish; one that is there stays as it is."""
    need_all_domains(caller_of(request))
    new = read_struct((await read_json(request)).value, NewDomain)
    async with acting_as(database_of(request), caller_of(request)) as connection:
        return _domain(await store.add(connection, new.name))


@get("/domains", operation_class=operation(query=("limit", "after")), opt={"scope": "read"})
async def list_domains(request: AnyRequest) -> dict[str, Any]:
    """List domains by name; `after` is the name or id of one."""
    given = params.query(request, "limit", "after")
    limit = params.limit_of(given)
    async with acting_as(database_of(request), caller_of(request)) as connection:
        after = (await store.get(connection, given["after"])).domain if "after" in given else None
        rows = await store.listing(connection, limit=limit + 1, after=after)
    return shapes.listed([_domain(row) for row in rows[:limit]], more=len(rows) > limit)


@get("/domains/{name:str}", operation_class=operation(path="name"), opt={"scope": "read"})
async def get_domain(request: AnyRequest) -> dict[str, Any]:
    """One domain, with its record and what DNS said last."""
    async with acting_as(database_of(request), caller_of(request)) as connection:
        return _domain(await store.get(connection, params.path_name(request)))


@post(
    "/domains/{name:str}/verify",
    status_code=200,
    operation_class=operation(path="name"),
    opt={"scope": "manage"},
)
async def verify_domain(request: AnyRequest) -> dict[str, Any]:
    """Look for the record now; `status` and `answer` say what was found and what to do."""
    need_all_domains(caller_of(request))
    name, caller = params.path_name(request), caller_of(request)
    async with acting_as(database_of(request), caller) as connection:
        row = await store.get(connection, name)
    if row.trusted_by is None:
        found = await txt.look(row.domain, request.app.state.name_servers)
        async with acting_as(database_of(request), caller) as connection:
            if not await store.checked(connection, row.id, found.outcome, list(found.found), found.said):
                raise Refused("not_found", "/name", f"{row.domain} was removed meanwhile", 404)
            row = await store.get(connection, str(row.id))
    return _domain(row)


@delete(
    "/domains/{name:str}", status_code=200, operation_class=operation(path="name"), opt={"scope": "manage"}
)
async def remove_domain(request: AnyRequest) -> dict[str, Any]:
    """Take a domain away: under the rule `verified`, mail from it is refused from now on."""
    need_all_domains(caller_of(request))
    async with acting_as(database_of(request), caller_of(request)) as connection:
        id_ = await store.remove(connection, params.path_name(request))
    return {"object": "domain", "id": str(id_), "deleted": True}


def _domain(row: Any) -> dict[str, Any]:
    return {
        "object": "domain",
        "id": str(row.id),
        "name": row.domain,
        "status": _STATES[row.state],
        "created_at": shapes.moment(row.created_at),
        "records": [
            {
                "record": "Verification",
                "name": txt.record_of(row.domain),
                "type": "TXT",
                "ttl": "Auto",
                "status": _STATES[row.state],
                "value": txt.PREFIX + row.token,
            }
        ],
        "verified_at": shapes.moment(row.verified_at),
        "checked_at": shapes.moment(row.checked_at),
        "answer": row.answer,
        "missing_since": shapes.moment(row.missing_since),
        "counts_until": shapes.moment(row.counts_until),
        "trusted_by": row.trusted_by,
        "trust_reason": row.trust_reason,
    }
