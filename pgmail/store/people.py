"""What is done about a person: erasure, as the connection's tenant or, for an administrator, another's.

A person is an address. One batch is one transaction of a few thousand rows at most; a person with a hundred
thousand emails takes as many calls as it takes, and what was done stays done if one fails. Again is harmless.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

import msgspec
from psycopg import AsyncConnection

from pgmail.sqlfiles import queries
from pgmail.store.database import fetch_one

Connection = AsyncConnection[Any]
BATCH = 1000


class Erasure(msgspec.Struct):
    """What was erased, or would be.

    `recipients` are emails to this person, `messages` those whose content changed. `too_late` are being sent and
    `waiting` name the person while others still wait for them: neither was erased. `next` is where to go on.
    """

    person: str | None = None
    recipients: int = 0
    messages: int = 0
    cancelled: int = 0
    discarded: int = 0
    too_late: int = 0
    waiting: int = 0
    suppressions: int = 0
    next: UUID | None = None

    @property
    def complete(self) -> bool:
        """Tell whether nothing of the person is left that could be erased later."""
        return self.next is None and not self.too_late and not self.waiting

    def add(self, other: Erasure) -> None:
        """Count another batch in."""
        for name in (
            "recipients",
            "messages",
            "cancelled",
            "discarded",
            "too_late",
            "waiting",
            "suppressions",
        ):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.person, self.next = other.person, other.next


async def erase_batch(
    connection: Connection,
    address: str,
    reason: str,
    *,
    tenant: str | None = None,
    after: UUID | None = None,
    dry_run: bool = False,
) -> Erasure:
    """Erase one batch, on from `after`; with `tenant`, of the tenant of that name.

    Raises Refused: `invalid_address`, `missing_field`, `invalid_reason`, `unknown_tenant`.
    """
    query = queries("people")["erase" if tenant is None else "erase_for"]
    values: dict[str, object] = {
        "address": address,
        "reason": reason,
        "after": after,
        "most": BATCH,
        "dry_run": dry_run,
    }
    row: Any = await fetch_one(connection, query, values if tenant is None else values | {"tenant": tenant})
    return msgspec.convert(row.answer, Erasure)


async def erase(
    connection: Connection, address: str, reason: str, *, tenant: str | None = None, dry_run: bool = False
) -> Erasure:
    """Erase a person, batch by batch, each its own transaction if the connection commits by itself."""
    total, after = Erasure(), None
    while True:
        total.add(await erase_batch(connection, address, reason, tenant=tenant, after=after, dry_run=dry_run))
        if total.next is None:
            return total
        after = total.next
