"""Limits, pauses and weights as workers see them: learnt about once a second, and asked for as mail goes out.

A rate is tokens, each for one message at one moment; a connection cap is permits that workers share. Both hold
across the fleet because the database deals them out (`sql/functions/027_tokens.sql`).

What can go wrong: a token that is spent late comes too close to the next. So a token lapses when two thirds of
the margin of its limit have passed since its moment, and clocks are compared often. And a worker that opens
connections while it asks for permits: what it reports as held is a promise not to exceed that until the answer,
and if no answer comes, until one does.

All raise `DatabaseAway`; the two that take an epoch raise `FencedOut` when this worker was declared dead.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

import msgspec

from pgmail import sqlfiles
from pgmail.store.database import Database, storable

Scope = Literal["relay", "site", "tenant"]
Key = tuple[Scope, str]

_Q = sqlfiles.queries("limits")


class LimitRow(msgspec.Struct, frozen=True):
    """One limit. `rate` in messages a second, `connections` at once: None where there is none.

    `margin`: a message that begins so many seconds after its token's moment breaks no window of the rate.
    `tenant` is the id of the tenant that a limit of scope `tenant` names. `shipped` marks a default that no
    operator has changed.
    """

    scope: Scope
    name: str
    tenant: int | None
    rate: float | None
    connections: int | None
    shipped: bool
    margin: float = 0.0

    @property
    def key(self) -> Key:
        """What tokens and permits are asked for by."""
        return self.scope, self.name


class PauseRow(msgspec.Struct, frozen=True):
    """One pause: it stops each lane that equals it in `tenant`, `stream`, `priority` and `site`, None being any.

    `seconds` until it ends by itself; None is until somebody resumes.
    """

    tenant: int | None
    scope: Literal["site", "stream", "lane", "tenant"]
    name: str
    stream: str | None
    priority: int | None
    site: str | None
    seconds: float | None
    reason: str
    by: str

    def stops(self, tenant: int, stream: str, priority: int, site: str) -> bool:
        """Tell whether a lane's mail waits for this pause."""
        return (
            self.tenant in (None, tenant)
            and self.stream in (None, stream)
            and self.priority in (None, priority)
            and self.site in (None, site)
        )


class Want(msgspec.Struct, frozen=True):
    """So many tokens are wanted now, each for one message under all of these keys."""

    keys: tuple[Key, ...]
    tokens: int


class Grant(msgspec.Struct, frozen=True):
    """Tokens for messages under `keys`, as moments in seconds from the answer; 0 for keys without a rate.

    `wanted` false: they were not asked for, but passed over by those that were, and nobody else gets them.
    Where fewer came than were wanted, `short` has no more before `wait` seconds.
    """

    keys: tuple[Key, ...]
    moments: list[float]
    wait: float
    clock: float  # the database's, seconds since 1970
    short: Key | None = None
    wanted: bool = True


class Share(msgspec.Struct, frozen=True):
    """Connections of a key: `held`, which is not exceeded until the answer, and `wanted`, those included."""

    scope: Scope
    name: str
    held: int
    wanted: int


async def limits(database: Database) -> list[LimitRow]:
    """Every limit, by scope and name."""
    return [LimitRow(*row) for row in await database.many(_Q["limits"])]


async def pauses(database: Database) -> list[PauseRow]:
    """Every pause that holds now, the fleet's first."""
    return [PauseRow(*row) for row in await database.many(_Q["pauses"])]


async def site(database: Database, domain: str) -> str:
    """The site of a domain: the group that it belongs to, or itself."""
    row = await database.one(_Q["limit_name"], {"scope": "site", "name": domain})
    return str(row.name) if row else domain


async def weights(database: Database) -> dict[int, float]:
    """Each tenant's share beside others, by its id; 1 is usual."""
    return {row.id: row.weight for row in await database.many(_Q["weights"])}


async def take_tokens(
    database: Database, epoch: int, wants: Sequence[Want], lead: float = 0.0
) -> list[Grant]:
    """Take tokens, half a second ahead at most: an answer for each want, in their order, and what they passed over.

    None is sooner than `lead` seconds. A relay that came up lately gets fewer, by its limit's ramp.
    """
    each = [(n, *key, want.tokens) for n, want in enumerate(wants) for key in want.keys]
    rows = await database.many(
        _Q["take_tokens"],
        {
            "epoch": epoch,
            "sets": [row[0] for row in each],
            "scopes": [row[1] for row in each],
            "names": [row[2] for row in each],
            "wants": [row[3] for row in each],
            "lead": lead,
        },
    )
    grants = []
    for number, scope, name, moments, wait, clock in rows:
        if number is None:
            grants.append(Grant(((scope, name),), moments, wait, clock, wanted=False))
        else:
            short = None if name is None else (scope, name)
            grants.append(Grant(wants[number].keys, moments, wait, clock, short))
    return grants


async def clock(database: Database) -> float:
    """The database's clock, seconds since 1970."""
    row = await database.one(_Q["clock"])
    assert row is not None  # noqa: S101 - it has no condition
    return float(row.clock)


async def share_permits(database: Database, epoch: int, shares: Sequence[Share]) -> dict[Key, int | None]:
    """How many connections of each key this worker may hold from now on; None where there is no cap.

    `shares` names every key of which it holds or wants any: the others it has given back. An answer below what
    it holds asks it to close some as their mails end. Until it reports fewer, they count as held.
    """
    rows = await database.many(
        _Q["share_permits"],
        {
            "epoch": epoch,
            "scopes": [share.scope for share in shares],
            "names": [share.name for share in shares],
            "held": [share.held for share in shares],
            "wanted": [share.wanted for share in shares],
        },
    )
    return {(row.scope, row.name): row.allowed for row in rows}


async def register_relays(database: Database, names: Sequence[str]) -> int:
    """Make the relays of a worker's settings known, so that streams may name them; how many were new."""
    row = await database.one(_Q["register_relays"], {"names": list(names)})
    return int(row.made) if row else 0


async def slow_site(database: Database, tenant: int, site: str, reason: str) -> datetime | None:
    """Pause a site of one tenant for a while, longer each time; until when. None if it is paused already."""
    row = await database.one(_Q["slow_site"], {"tenant": tenant, "site": site, "reason": storable(reason)})
    return row.until if row else None
