"""Quotas in the database: what operators laid down, what is closed, and places for emails that come by HTTP.

`gate` and `take` are the API's, in transactions of their own before the email's; `listing`, `doors`, `save` and
`remove` act as the tenant of the connection. What can go wrong: a place that was taken and not used, since the
email was refused after all or the client hung up. It counts as used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
from psycopg import AsyncConnection
from psycopg.types.json import Jsonb

from pgmail.sqlfiles import queries
from pgmail.store.database import Database, fetch_many, fetch_one
from pgmail.store.keys import Caller

Connection = AsyncConnection[Any]
Kind = Literal["rate", "day", "queued", "pressure", "bound"]


class Door(msgspec.Struct, frozen=True):
    """What is closed for `seconds` more: to mail of `priority` (1 high, 3 low) and below, of one stream or all ('')."""

    stream: str
    kind: Kind
    priority: int
    seconds: float
    reason: str


class Gate(msgspec.Struct, frozen=True):
    """What limits a key: rules as (scope, name), closed doors, and streams whose mail is of low priority by default.

    `low` is told only while backpressure holds.
    """

    rules: list[tuple[str, str]]
    doors: list[Door]
    low: frozenset[str]


class Answer(msgspec.Struct, frozen=True):
    """Whether a group has its places; if not, which rule refused it, and in how many `seconds` to ask again.

    `seconds` None: never, since the group is larger than `most`, which the rule allows at once.
    """

    granted: bool
    scope: str = ""
    kind: Kind = "rate"
    seconds: float | None = None
    most: int | None = None


class Used(msgspec.Struct, frozen=True):
    """What is left of a rule: in this second, and in the day, which ends in `midnight` seconds (UTC)."""

    scope: str
    stream: str | None
    per_second: int | None
    left: int | None
    per_day: int | None
    left_today: int | None
    midnight: float


class Taken(msgspec.Struct, frozen=True):
    """The answers to groups, in their order, and the rules that they came under."""

    answers: list[Answer]
    rules: list[Used]


async def gate(database: Database, caller: Caller) -> Gate:
    """Return what limits a key now. Raises DatabaseAway."""
    row: Any = await database.one(queries("quotas")["gate"], _acting(caller))
    return msgspec.convert(row.gate, Gate)


async def take(database: Database, caller: Caller, groups: Sequence[Mapping[str, int]]) -> Taken:
    """Take places for groups of emails, each wholly or not at all: recipients by the name of their stream.

    Raises DatabaseAway.
    """
    each = [(at, stream, count) for at, group in enumerate(groups) for stream, count in group.items()]
    values = _acting(caller) | {
        "groups": [row[0] for row in each],
        "streams": [row[1] for row in each],
        "counts": [row[2] for row in each],
    }
    row: Any = await database.one(queries("quotas")["take"], values)
    return msgspec.convert(row.taken, Taken)


async def listing(connection: Connection) -> list[Any]:
    """Return the rules that the caller sees: the fleet's, tenants', streams', keys'.

    `scope tenant name per_second per_day max_queued pressure_depth pressure_seconds bound_mails bound_bytes note
    changed_at changed_by used_today mails_today bytes_today`; None is no limit.
    """
    return await fetch_many(connection, queries("quotas")["list"])


async def doors(connection: Connection) -> list[Any]:
    """Return what is closed now: `tenant stream kind priority until reason`; `stream` None is every stream."""
    return await fetch_many(connection, queries("quotas")["doors"])


async def save(
    connection: Connection,
    scope: str,
    name: str | None,
    settings: Mapping[str, object],
    tenant: str | None = None,
) -> str:
    """Make a rule or change what is named of one; its name in normal form.

    `tenant` None is the caller's own. Raises Refused: `invalid_scope`, `unknown_tenant`, `unknown_stream`,
    `unknown_key` (404), `invalid_quota`, `invalid_body`.
    """
    values = {"scope": scope, "name": name, "settings": Jsonb(dict(settings)), "tenant": tenant}
    row: Any = await fetch_one(connection, queries("quotas")["set"], values)
    return str(row.name)


async def remove(connection: Connection, scope: str, name: str | None, tenant: str | None = None) -> bool:
    """Remove a rule; False if there was none. Raises Refused as `save`, and `not_allowed` (409) for the fleet's."""
    values = {"scope": scope, "name": name, "tenant": tenant}
    row: Any = await fetch_one(connection, queries("quotas")["remove"], values)
    return bool(row.removed)


def _acting(caller: Caller) -> dict[str, object]:
    return {**caller.settings(), "key_id": caller.key_id}
