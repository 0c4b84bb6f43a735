"""Domains that a tenant sends from, in the database; as the connection's tenant, but for `set_rule`.

Adding, removing and vouching are recorded in the audit by the functions themselves. The look into DNS comes
between two statements and holds no transaction: read the domain, look, then `checked`.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from psycopg import AsyncConnection

from pgmail.domain.address import normalise_domain
from pgmail.errors import Refused
from pgmail.sqlfiles import queries
from pgmail.store.database import fetch_many, fetch_one

Connection = AsyncConnection[Any]
_Q = queries("domains")


async def listing(
    connection: Connection, *, limit: int, after: str | None = None, name: str | None = None
) -> list[Any]:
    """Return domains by name, after one; or the one of this name or id.

    `id domain state token created_at created_by verified_at checked_at answer missing_since counts_until
    trusted_by trust_reason`.
    """
    id_, domain = _named(name)
    values = {"limit": limit, "after": after, "id": id_, "domain": domain}
    return await fetch_many(connection, _Q["list"], values)


async def get(connection: Connection, name: str) -> Any:
    """Return one by its name or id. Raises Refused `not_found` (404)."""
    rows = await listing(connection, limit=1, name=name)
    if not rows:
        raise Refused("not_found", "/name", f"no domain of this tenant is {name[:253]!r}", 404)
    return rows[0]


async def add(connection: Connection, domain: str) -> Any:
    """Add a domain, or find it, and return it as `listing` does. Raises Refused `invalid_domain`."""
    row: Any = await fetch_one(connection, _Q["add"], {"domain": _normal(domain)})
    return await get(connection, str(row.id))


async def remove(connection: Connection, name: str, reason: str | None = None) -> UUID:
    """Take a domain away, by its name or id, and return its id. Raises Refused `not_found` (404)."""
    row: Any = await fetch_one(connection, _Q["remove"], {"domain": name, "reason": reason})
    found: UUID = row.id
    return found


async def trust(connection: Connection, domain: str, reason: str, tenant: str | None = None) -> UUID:
    """Vouch for a domain without a record, of this tenant or another by name. Raises Refused."""
    values = {"domain": _normal(domain), "reason": reason, "tenant": tenant}
    row: Any = await fetch_one(connection, _Q["trust"], values)
    found: UUID = row.id
    return found


async def checked(connection: Connection, id: UUID, outcome: str, found: list[str], said: str) -> str | None:
    """Record what a look found; return the state from now on, or None if the domain is gone."""
    values = {"id": id, "outcome": outcome, "found": found, "said": said}
    row: Any = await fetch_one(connection, _Q["checked"], values)
    state: str | None = row.state
    return state


async def set_rule(connection: Connection, tenant: str, senders: str, reason: str | None = None) -> None:
    """Set from which domains a tenant may send: `any` or `verified`. The owner's or an admin's. Raises Refused."""
    await fetch_one(connection, _Q["senders"], {"tenant": tenant, "senders": senders, "reason": reason})


async def rule(connection: Connection) -> Any | None:
    """Return `name senders` of the connection's tenant, or None if it belongs to none."""
    return await fetch_one(connection, _Q["rule"])


def _named(name: str | None) -> tuple[UUID | None, str | None]:
    """Take a name or an id apart; a name that is none finds nothing."""
    if name is None:
        return None, None
    try:
        return UUID(name), None
    except ValueError:
        pass
    try:
        return None, normalise_domain(name.strip(" "))
    except ValueError:
        return None, name


def _normal(domain: str) -> str:
    try:
        return normalise_domain(domain.strip(" "))
    except ValueError as error:
        raise Refused("invalid_domain", "/name", str(error)) from None
