"""`/erase`: a person's data goes, the accounting stays.

A POST with the address in its body, since a path stands in access logs. A call takes a thousand emails at most;
`next` in the answer is the `after` of the next one, null when there is no more. What can go wrong: mail that is
being sent this moment, or that names the person while others still wait for it. It is counted (`too_late`,
`waiting`), was not erased, and is reached by asking again later.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

import msgspec
from litestar import Request, post

from pgmail.access.reach import need_all_streams
from pgmail.api.bodies import read_json, read_struct
from pgmail.api.openapi import operation
from pgmail.api.params import caller_of, database_of
from pgmail.store import people as store
from pgmail.store.tenant import acting_as


class Person(msgspec.Struct, forbid_unknown_fields=True):
    """The body: who, why (for the record), where to go on, and whether only to count."""

    address: str
    reason: str
    after: UUID | None = None
    dry_run: bool = False


@post("/erase", scope="manage", status_code=200, operation_class=operation("Erasure"))
async def erase_person(request: Request[Any, Any, Any]) -> dict[str, Any]:
    """Erase a person's data, up to a thousand emails a call."""
    need_all_streams(caller_of(request))
    body = read_struct((await read_json(request)).value, Person)
    async with acting_as(database_of(request), caller_of(request)) as connection:
        done = await store.erase_batch(
            connection, body.address, body.reason, after=body.after, dry_run=body.dry_run
        )
    return {
        "object": "erasure",
        **msgspec.to_builtins(done),
        "dry_run": body.dry_run,
        "complete": done.complete,
    }
