"""Webhooks in the database: endpoints as the connection's tenant manages them, and the work of who calls them.

Adding, changing, rotating, testing and replaying are recorded in the audit by the functions themselves. Secrets come
here sealed. `fan_out`, `claim`, `settle` and `keep` are the workers' and the leader's, of all tenants.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from psycopg import AsyncConnection

from pgmail.errors import Refused
from pgmail.sqlfiles import queries
from pgmail.store.database import Database, fetch_many, fetch_one

Connection = AsyncConnection[Any]
_Q = queries("hooks")
REPLAY_STEP = 5_000


class NewHook(msgspec.Struct, frozen=True, kw_only=True):
    """A new endpoint. `streams` and `tags` None: whatever they are."""

    url: str
    types: Sequence[str] = ("email.*",)
    streams: Sequence[str] | None = None
    tags: Mapping[str, str] | None = None
    description: str | None = None


class SealedSecret(NamedTuple):
    """A secret that the data key `key` of its tenant sealed."""

    key: int
    sealed: bytes


class AttemptFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which calls of the log; None is no limit. `since` and `until` are about the call's time, aware."""

    event: UUID | None = None
    type: str | None = None
    outcome: str | None = None
    since: datetime | None = None
    until: datetime | None = None


class Result(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What came of one call that was claimed: what the claim said of it, and the verdict."""

    tenant_id: int
    hook_id: UUID
    event_id: UUID
    email_id: UUID | None
    recipient_id: UUID | None
    type: str
    at: datetime
    attempt: int
    claims: int
    outcome: str
    seconds: float = 0.0
    rest: float = 0.0
    gone: bool = False
    status: int | None = None
    ms: int | None = None
    error: str | None = None
    answer: str | None = None


async def listing(connection: Connection, id: UUID | None = None) -> list[Any]:
    """Return endpoints, oldest first.

    `id url description types streams tags enabled reason created_at created_by changed_at fails failing_since
    rest_until last_error waiting oldest_at secrets`; `waiting` counts to 10,000.
    """
    return await fetch_many(connection, _Q["list"], {"id": id})


async def get(connection: Connection, id: UUID) -> Any:
    """Return one as `listing` does. Raises Refused `not_found` (404)."""
    rows = await listing(connection, id)
    if not rows:
        raise Refused("not_found", "/id", f"no webhook has the id {id}", 404)
    return rows[0]


async def add(connection: Connection, id: UUID, hook: NewHook, secret: SealedSecret) -> None:
    """Add an endpoint. Raises Refused with the field of the first fault."""
    values = {
        "id": id,
        "url": hook.url,
        "types": list(hook.types),
        "streams": None if hook.streams is None else list(hook.streams),
        "tags": None if hook.tags is None else _json(dict(hook.tags)),
        "description": hook.description,
        "key": secret.key,
        "sealed": secret.sealed,
    }
    await fetch_one(connection, _Q["add"], values)


async def change(
    connection: Connection, id: UUID, changes: Mapping[str, Any], reason: str | None = None
) -> None:
    """Change `endpoint events streams tags description status`, those that are named. Raises Refused."""
    await fetch_one(connection, _Q["set"], {"id": id, "changes": _json(dict(changes)), "reason": reason})


async def remove(connection: Connection, id: UUID, reason: str | None = None) -> None:
    """Take an endpoint away, with what waits for it. Raises Refused `not_found` (404)."""
    await fetch_one(connection, _Q["remove"], {"id": id, "reason": reason})


async def rotate(
    connection: Connection, id: UUID, secret: SealedSecret, overlap: float, reason: str | None = None
) -> datetime:
    """Sign with another secret from now on; when the old one ends, after `overlap` seconds. Raises Refused."""
    values = {"id": id, "key": secret.key, "sealed": secret.sealed, "overlap": overlap, "reason": reason}
    row: Any = await fetch_one(connection, _Q["rotate"], values)
    ends: datetime = row.ends_at
    return ends


async def test(connection: Connection, id: UUID) -> UUID:
    """Queue a sample event; its id. Raises Refused `not_found` (404), `webhook_disabled` (409)."""
    row: Any = await fetch_one(connection, _Q["test"], {"id": id})
    event: UUID = row.event_id
    return event


async def replay(
    connection: Connection,
    id: UUID,
    filter: Mapping[str, str],
    after: UUID | None = None,
    reason: str | None = None,
) -> tuple[int, UUID | None]:
    """Tell events of the log once more, of the next `REPLAY_STEP` calls after one.

    `filter` may name `since until type outcome event`. How many, and from where to go on (None: that was all).
    """
    values = {
        "id": id,
        "filter": _json(dict(filter)),
        "after": after,
        "most": REPLAY_STEP,
        "reason": reason,
    }
    row: Any = await fetch_one(connection, _Q["replay"], values)
    return row.n, row.next


async def count_replay(connection: Connection, id: UUID, filter: Mapping[str, str]) -> tuple[int, bool]:
    """Return how many events `replay` would tell; False beside it: at least so many, for the log is very long."""
    row: Any = await fetch_one(connection, _Q["count_replay"], {"id": id, "filter": _json(dict(filter))})
    return row.n, row.complete


async def attempts(
    connection: Connection, hook: UUID, filter: AttemptFilter, *, limit: int, after: UUID | None = None
) -> list[Any]:
    """Return calls to an endpoint, newest first, those before the call `after`.

    `id at event_id email_id recipient_id type event_at attempt outcome status ms error answer next_at`.
    """
    values = msgspec.structs.asdict(filter) | {"hook": hook, "limit": limit, "after": after}
    return await fetch_many(connection, _Q["attempts"], values)


async def fan_out(database: Database, most: int) -> Any:
    """Queue what is new for those who want it; `queued more idle`."""
    return await database.one(_Q["fan_out"], {"most": most})


async def claim(
    database: Database,
    keks: Sequence[str],
    *,
    most: int,
    each: int,
    lease_seconds: float,
    busy: Mapping[UUID, int],
    turn: float,
) -> list[Any]:
    """Take what is due; columns as in the query `claim`, `attempt` from 1.

    Of one endpoint `each` at most, less those under way here (`busy`). `turn` (0 to 1, by chance) is where among
    very many endpoints it begins.
    """
    values = {
        "keks": list(keks),
        "most": most,
        "each": each,
        "seconds": lease_seconds,
        "busy": list(busy),
        "counts": list(busy.values()),
        "turn": turn,
    }
    return await database.many(_Q["claim"], values)


async def settle(database: Database, results: Sequence[Result]) -> None:
    """Record what came of calls."""
    await database.run(_Q["settle"], {"results": msgspec.json.encode(results).decode()})


async def keep(database: Database, days: int, most: int = 5_000) -> int:
    """Do a step of tidying; about how many rows it was."""
    row: Any = await database.one(_Q["keep"], {"days": days, "most": most})
    return int(row.n)


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
