"""API keys in the database: the check that comes before anything else, and their making, rotating and revoking.

`make`, `rotate`, `revoke` and `listing` act as the tenant of the connection, and under the API's role for the key
that it acts for, which must have the scope admin; `check` is the one question that the API's role may ask before
it acts for anybody.

What can go wrong: an old API process meets a key with limits that it does not know. To those, keys with limits
are unknown (`check_key_v1`).
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from psycopg import AsyncConnection

from pgmail.domain.keys import USUAL, Scope, granted, make_key
from pgmail.errors import Refused
from pgmail.sqlfiles import queries
from pgmail.store.database import Database, fetch_many, fetch_one

Connection = AsyncConnection[Any]
Network = IPv4Network | IPv6Network


class Caller(NamedTuple):
    """Whose key it was: the tenant it speaks for, the key's id and name, what it may do and within which limits.

    `scopes` are all that it may, so of an admin key every one. None is no limit: of `streams` by name, of
    `from_domains` as in `domain.keylimits`, of `networks` that it may be used from.
    """

    tenant_id: int
    key_id: UUID
    name: str
    scopes: frozenset[Scope] = USUAL
    test: bool = False
    streams: frozenset[str] | None = None
    from_domains: frozenset[str] | None = None
    networks: tuple[Network, ...] | None = None
    source: str = ""  # the client's address, for the audit; unknown where many send together

    def __hash__(self) -> int:
        """Hash by the key: who waits in line is looked up by its caller, and the other fields are slow to hash."""
        return hash(self.key_id)

    @property
    def actor(self) -> str:
        """Who did it, in the words of the record and of `audit`."""
        return f"key {self.name}"

    @property
    def restricted(self) -> bool:
        """Whether an email has to be looked at before it is taken from this key."""
        return self.test or self.streams is not None or self.from_domains is not None

    def settings(self) -> dict[str, str]:
        """Return the parameters of the query `act_as`."""
        return {
            "tenant_id": str(self.tenant_id),
            "actor": self.actor,
            "key_id": str(self.key_id),
            "source": self.source,
        }


class Valid(NamedTuple):
    """A key that is valid now, and how long still, in seconds; None: until it is revoked."""

    caller: Caller
    seconds_left: float | None


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a new key may do, and within which limits. What is None is no limit; no `scopes` are the usual ones."""

    scopes: list[Scope] | None = None
    test: bool = False
    streams: list[str] | None = None
    from_domains: list[str] | None = None
    networks: list[str] | None = None
    expires_at: datetime | None = None


class Made(NamedTuple):
    """A key that was just made, and what it may. `key` is shown once and stored nowhere."""

    id: UUID
    key: str
    hint: str
    name: str
    scopes: list[str]
    test: bool
    streams: list[str] | None
    from_domains: list[str] | None
    networks: list[str] | None
    expires_at: datetime | None


class Use(NamedTuple):
    """That a key was used `age` seconds ago, from an address if one is known."""

    tenant_id: int
    key_id: UUID
    origin: str | None
    age: float


async def check(database: Database, hash: bytes) -> Valid | None:
    """Return whose key has this SHA-256, or None for an unknown, revoked or expired one."""
    row = await database.one(queries("keys")["check"], {"hash": hash})
    if row is None or not hmac.compare_digest(bytes(row.hash), hash):
        return None
    return _valid(row)


async def check_id(database: Database, tenant_id: int, id: UUID) -> Valid | None:
    """Return whose key has this id, or None for an unknown, revoked or expired one.

    An id is no secret: this is for sessions, whose signature was checked.
    """
    row: Any = await database.one(queries("keys")["check_id"], {"tenant_id": tenant_id, "id": id})
    return None if row is None else _valid(row)


async def form_once(connection: Connection, form: UUID) -> bool:
    """Tell whether a form of the dashboard comes for the first time; that it came holds if the transaction commits."""
    row: Any = await fetch_one(connection, queries("keys")["form_once"], {"form": form})
    return bool(row.fresh)


async def session_secret(database: Database) -> bytes:
    """Return what signs the dashboard's sessions, 32 octets, the same for all processes."""
    row: Any = await database.one(queries("keys")["session_secret"])
    return bytes(row.secret)


async def create(connection: Connection, name: str, limits: Limits | None = None) -> Made:
    """Make a key for the connection's tenant. `name` says who uses it.

    Raises Refused for limits that are none, with the field; `exceeds_key` (403) for more than the key has that the
    API acts for.
    """
    limits = limits or Limits()
    key, hint, hash_ = make_key(test=limits.test)
    values = {"name": name, "hint": hint, "hash": hash_, "limits": msgspec.json.encode(limits).decode()}
    row: Any = await fetch_one(connection, queries("keys")["make"], values)
    return _made(row, key, hint, name)


async def rotate(
    connection: Connection, id: UUID, overlap: timedelta, reason: str | None = None
) -> tuple[Made, datetime]:
    """Make a key with the limits of another, which ends after `overlap`; the new one, and when the old one ends.

    Raises Refused: `not_found` (404), `already_rotated` (409), `invalid_field`.
    """
    old: Any = await fetch_one(connection, queries("keys")["find"], {"id": id})
    if old is None:
        raise Refused("not_found", "/id", f"no valid key has the id {id}", 404)
    key, hint, hash_ = make_key(test=old.test)
    values = {"id": id, "hint": hint, "hash": hash_, "overlap": overlap.total_seconds(), "reason": reason}
    row: Any = await fetch_one(connection, queries("keys")["rotate"], values)
    return _made(row, key, hint, row.name), row.old_expires_at


async def revoke(connection: Connection, id: UUID, reason: str | None = None) -> bool:
    """Revoke a key; False if it is unknown or ended before. Processes notice within a second."""
    row: Any = await fetch_one(connection, queries("keys")["revoke"], {"id": id, "reason": reason})
    return bool(row.revoked)


async def listing(connection: Connection) -> list[Any]:
    """Return all keys, oldest first, those that ended too; columns as in the query `list`."""
    return await fetch_many(connection, queries("keys")["list"])


async def reach(connection: Connection, ids: Sequence[UUID]) -> list[Any]:
    """Return `id stream own test` of those of these emails or recipients that the tenant has."""
    return await fetch_many(connection, queries("keys")["reach"], {"ids": list(ids)})


async def note_uses(database: Database, uses: Iterable[Use]) -> None:
    """Record when and from where keys were used last."""
    given = list(uses)
    values = {
        "tenants": [use.tenant_id for use in given],
        "keys": [use.key_id for use in given],
        "origins": [use.origin for use in given],
        "ages": [use.age for use in given],
    }
    await database.run(queries("keys")["note_uses"], values)


async def share_guesses(database: Database, counts: Mapping[str, int]) -> dict[str, float]:
    """Add failed tries by client to what all processes counted; how many of each are not forgiven yet."""
    values = {"clients": list(counts), "counts": list(counts.values())}
    rows = await database.many(queries("keys")["share_guesses"], values)
    return {row.client: row.level for row in rows}


async def note_guesses(database: Database, origin: str, tries: int) -> None:
    """Record in the audit that somebody tries keys that are none."""
    await database.run(queries("keys")["note_guesses"], {"origin": origin, "tries": tries})


async def end_sessions(connection: Connection, reason: str | None = None) -> None:
    """End all sessions of the dashboard, of every tenant. For the admin's role."""
    await fetch_one(connection, queries("keys")["end_sessions"], {"reason": reason})


def _set(items: list[str] | None) -> frozenset[str] | None:
    return None if items is None else frozenset(items)


def _valid(row: Any) -> Valid:
    caller = Caller(
        row.tenant_id,
        row.key_id,
        row.name,
        granted(frozenset(row.scopes)),
        row.test,
        _set(row.streams),
        _set(row.from_domains),
        None if row.networks is None else tuple(ip_network(text) for text in row.networks),
    )
    return Valid(caller, row.seconds_left)


def _made(row: Any, key: str, hint: str, name: str) -> Made:
    return Made(
        row.id,
        key,
        hint,
        name,
        row.scopes,
        row.test,
        row.streams,
        row.from_domains,
        row.networks,
        row.expires_at,
    )
