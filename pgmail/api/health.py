"""`/health`: whether this process lives, and whether it can work. No key is asked for.

`live` says that the process answers; restart it if it does not. `ready` says that the database answers and
that program and schema fit together; send it no requests while it does not (503). A database that was restored takes
mail and sends none until an operator has decided: that is ready, and `sending` says so.
"""

from __future__ import annotations

from typing import Any

from litestar import Request, Response, get

from pgmail.api.openapi import operation
from pgmail.api.params import database_of
from pgmail.api.problems import RETRY_SECONDS
from pgmail.errors import DatabaseAway, SchemaMismatch
from pgmail.store import history, schema
from pgmail.store.database import Database


@get("/health/live", operation_class=operation())
async def live() -> dict[str, str]:
    """Answer."""
    return {"status": "ok"}


@get("/health/ready", operation_class=operation())
async def ready(request: Request[Any, Any, Any]) -> Response[dict[str, Any]]:
    """Tell whether requests can be served, and if not, why."""
    problem, sending = await look(database_of(request))
    return _answer(problem, sending)


async def look(database: Database) -> tuple[str | None, str | None]:
    """Return what keeps requests from being served, and why no mail is sent; None where nothing does."""
    try:
        await schema.require(database)
        async with database.connection() as connection:
            fence = await history.fence(connection)
    except DatabaseAway:
        return "the database cannot be reached", None
    except SchemaMismatch as error:
        return str(error), None
    return None, None if fence is None else f"stopped since {fence.noticed_at}: {fence.reason}"


def _answer(problem: str | None, sending: str | None = None) -> Response[dict[str, Any]]:
    if problem is None:
        return Response({"status": "ok"} | ({} if sending is None else {"sending": sending}))
    return Response(
        {"status": "unavailable", "problem": problem},
        status_code=503,
        headers={"Retry-After": str(RETRY_SECONDS[503])},
    )
