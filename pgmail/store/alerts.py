"""Alerts in the database: what fires, rules, silences, who is told. Acts as the tenant of the connection.

`every` and `fleet` are an administrator's: all tenants and the fleet, refused (403) to API keys. The leading process
looks (`step`), takes what is to be told (`take`) and says how it went (`told`).

What can go wrong: two processes lead for a moment. The second look does nothing, and a delivery is taken once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.types.json import Jsonb

from pgmail.sqlfiles import queries
from pgmail.store.database import Database, fetch_many, fetch_one, storable

Connection = AsyncConnection[Any]


async def step(database: Database) -> list[Any]:
    """Look once; what moved: `move rule severity tenant subject words silenced`.

    `move` is `firing`, `resolved`, or `blind` where a family of conditions (`rule`) could not be looked at.
    """
    return await database.many(queries("alerts")["step"])


async def purge(database: Database) -> int:
    """Remove a part of what is over for long; how many rows went: 0 if none is left."""
    row: Any = await database.one(queries("alerts")["purge"])
    return int(row.purged)


async def take(database: Database, most: int, busy: Collection[UUID]) -> list[Any]:
    """Take the next delivery of each target that is due, but of `busy` targets; columns as in `alert_take_v1`."""
    return await database.many(queries("alerts")["take"], {"most": most, "busy": list(busy)})


async def give_back(database: Database, ids: Collection[UUID]) -> None:
    """Have deliveries that were broken off told by the next process, at once."""
    await database.one(queries("alerts")["give_back"], {"ids": list(ids)})


async def told(database: Database, id: UUID, *, ok: bool, answer: str | None, final: bool = False) -> None:
    """Record how a delivery went; `final` failures are not tried again."""
    values = {"id": id, "ok": ok, "answer": storable(answer), "final": final}
    await database.one(queries("alerts")["told"], values)


async def saw_certificate(database: Database, name: str, place: str, ends_at: datetime) -> None:
    """Record when a certificate ends."""
    await database.run(
        queries("alerts")["saw_certificate"], {"name": name, "place": place, "ends_at": ends_at}
    )


async def missed_certificate(database: Database, name: str, place: str, answer: str) -> None:
    """Record that a certificate could not be seen, and why; when it ends stays as it was seen last."""
    await database.run(
        queries("alerts")["missed_certificate"], {"name": name, "place": place, "answer": storable(answer)}
    )


async def listing(
    connection: Connection,
    *,
    every: bool = False,
    state: str = "open",
    rule: str | None = None,
    limit: int = 100,
    after: UUID | None = None,
) -> list[Any]:
    """Return alerts, those that are open first, the newest first of each.

    `state` is `open`, `firing`, `pending`, `resolved` or `all`. Columns are
    `id rule kind tenant subject severity state since fired_at resolved_at value threshold unit words path silenced
    told_at`. `path` is of the dashboard. A tenant sees its own, and of the fleet's what its mail feels; where it is
    alone, all.
    """
    values = {"every": every, "state": state, "rule": rule, "limit": limit, "after": after}
    return await fetch_many(connection, queries("alerts")["list"], values)


async def rules(connection: Connection, *, every: bool = False) -> list[Any]:
    """Return rules by name, as they hold for the caller; columns as in `pgmail.alert_rules`."""
    return await fetch_many(connection, queries("alerts")["rules"], {"every": every})


async def set_rule(
    connection: Connection,
    name: str,
    settings: Mapping[str, object],
    *,
    reason: str | None = None,
    fleet: bool = False,
) -> None:
    """Change what is named of a rule, or make one (`kind` must be among the settings then).

    Raises Refused: `invalid_name`, `unknown_rule` (404), `invalid_rule`, `unknown_key`, `not_allowed` (403).
    """
    values = {"name": name, "settings": Jsonb(dict(settings)), "reason": reason, "fleet": fleet}
    await fetch_one(connection, queries("alerts")["set_rule"], values)


async def remove_rule(
    connection: Connection, name: str, *, reason: str | None = None, fleet: bool = False
) -> bool:
    """Remove a rule that was made here; False if there is none. Refused `not_allowed` (409) for a shipped one."""
    values = {"name": name, "reason": reason, "fleet": fleet}
    row: Any = await fetch_one(connection, queries("alerts")["remove_rule"], values)
    return bool(row.removed)


async def silence(
    connection: Connection,
    rule: str,
    *,
    reason: str | None,
    until: datetime | None = None,
    subject: str = "*",
    fleet: bool = False,
) -> None:
    """Tell nobody of a rule's alerts, or of one subject's, until a moment or until `unsilence`.

    Raises Refused: `unknown_rule` (404), `missing_field`, `invalid_reason`, `time_in_past`.
    """
    values = {"rule": rule, "reason": reason, "until": until, "subject": subject, "fleet": fleet}
    await fetch_one(connection, queries("alerts")["silence"], values)


async def unsilence(
    connection: Connection, rule: str, *, reason: str | None = None, subject: str = "*", fleet: bool = False
) -> bool:
    """End a silence; False if there is none."""
    values = {"rule": rule, "reason": reason, "subject": subject, "fleet": fleet}
    row: Any = await fetch_one(connection, queries("alerts")["unsilence"], values)
    return bool(row.ended)


async def silences(connection: Connection, *, every: bool = False) -> list[Any]:
    """Return silences that hold: `rule subject tenant fleet reason until silenced_at silenced_by`."""
    return await fetch_many(connection, queries("alerts")["silences"], {"every": every})


async def targets(connection: Connection, *, every: bool = False) -> list[Any]:
    """Return who is told, and how that goes.

    `id name tenant kind shown sealed severity created_at created_by told_at failing_since answer waiting`.
    """
    return await fetch_many(connection, queries("alerts")["targets"], {"every": every})


async def tenant(connection: Connection) -> int | None:
    """Return the id of the tenant that the connection speaks for; None where it speaks for none."""
    row: Any = await fetch_one(connection, queries("alerts")["tenant"])
    found: int | None = row.id
    return found


async def add_target(
    connection: Connection,
    id: UUID,
    name: str,
    *,
    kind: str,
    shown: str,
    secret: tuple[str | None, bytes],
    severity: str = "warning",
    fleet: bool = False,
) -> None:
    """Tell somebody of alerts from now on. `secret` is the name of the key that sealed it, if one did, and octets.

    `shown` says where it goes, for people. Raises Refused: `invalid_name`, `already_there` (409), `too_many` (409).
    """
    values = {
        "name": name,
        "kind": kind,
        "shown": shown,
        "secret": secret[1],
        "kek": secret[0],
        "severity": severity,
        "fleet": fleet,
        "id": id,
    }
    await fetch_one(connection, queries("alerts")["add_target"], values)


async def remove_target(
    connection: Connection, name: str, *, reason: str | None = None, fleet: bool = False
) -> bool:
    """Tell it of nothing from now on; False if there is none of that name."""
    values = {"name": name, "reason": reason, "fleet": fleet}
    row: Any = await fetch_one(connection, queries("alerts")["remove_target"], values)
    return bool(row.removed)


async def send_test(connection: Connection, name: str, *, fleet: bool = False) -> UUID:
    """Have the leader send a test; the delivery's id. Refused `not_found` (404)."""
    row: Any = await fetch_one(connection, queries("alerts")["test_target"], {"name": name, "fleet": fleet})
    return UUID(str(row.id))


async def delivery(connection: Connection, id: UUID, *, fleet: bool = False) -> Any:
    """Return `state` and `answer` of a delivery: `waiting`, `sent` or `failed`."""
    return await fetch_one(connection, queries("alerts")["delivery"], {"id": id, "fleet": fleet})
