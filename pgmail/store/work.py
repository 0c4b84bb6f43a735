"""What a worker does with the queue: claim, load, settle, release; lanes, streams and relays as it sees them.

Thin: each function is one named query of `sql/queries/work.sql` and the types around it. All of them raise
`DatabaseAway` when the server is not there and `FencedOut` when this worker was declared dead.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AsyncExitStack
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from psycopg.types.json import Jsonb, set_json_dumps

from pgmail import sqlfiles
from pgmail.store.arrays import Integers, Smallints, Uuids
from pgmail.store.database import Database, fetch_each, storable

set_json_dumps(lambda value: msgspec.json.encode(value).decode())

_Q = sqlfiles.queries("work")


class Lease(msgspec.Struct, frozen=True):
    """A claimed row. `(epoch, claims)` is the fence of its settlement."""

    tenant: int
    id: UUID
    message_id: UUID
    lane: int
    due_at: datetime
    claims: int
    attempts: int
    rescues: int
    expires_at: datetime | None
    tried_since: datetime | None = None  # its first attempt was answered
    vowed: bool = False  # it must not be sent before `begin_each` told the database


class LaneRow(msgspec.Struct, frozen=True):
    """A lane as the database knows it. `priority` 1 high, 2 normal, 3 low."""

    tenant: int
    id: int
    stream: str
    priority: int
    site: str
    active: bool
    version: int
    rewind_to: datetime | None


class StreamRow(msgspec.Struct, frozen=True):
    """A stream's policy. Seconds where the name says so. Defaults are those of the table."""

    tenant: int
    name: str
    relay: str = "default"
    on_doubt: str = "resend"
    trace: str = "full"
    retry_base_seconds: float = 30.0
    retry_factor: float = 3.0
    retry_cap_seconds: float = 14_400.0
    retry_jitter: float = 0.2
    max_attempts: int = 20
    max_age_seconds: int = 259_200
    relays: list[str] | None = None  # several: in order, or by `relay_weights`
    relay_weights: list[float] | None = None
    seal: str = "off"


class RelayRow(msgspec.Struct, frozen=True):
    """A relay's health. `seconds` until it may be tried again; None with `paused` is until it is resumed."""

    name: str
    state: str
    reason: str | None
    seconds: float | None


class Settlement(msgspec.Struct, kw_only=True, gc=False):
    """What became of one lease; the fields of `pgmail.settle_v2`."""

    id: UUID
    message_id: UUID
    claims: int
    kind: str  # sent bounced deferred dead expired suppressed held
    lane: int
    stream: str
    priority: int
    site: str
    attempts: int  # spent before this one
    relay: str | None = None
    delay: float | None = None  # seconds until the next attempt
    reason: str | None = None
    error: str | None = None
    began: bool = True
    doubt: bool = False
    suppress: bool = False  # bounced: the address is gone for good
    code: int | None = None
    enhanced: str | None = None
    reply: str | None = None
    phase: str | None = None
    remote_host: str | None = None
    tls: str | None = None
    ms: int | None = None


class Claim(msgspec.Struct, frozen=True):
    """What to claim from one lane: rows after the head `(due, after)`, `limit` at most."""

    lane: int
    due: datetime
    after: UUID
    limit: int
    traced: bool
    holds: bool = False  # its mail is not sent before the intent is committed


class Barred(msgspec.Struct, frozen=True):
    """Why a sealed mail cannot be made: a key is missing, and it waits; or, `broken`, nobody can open it."""

    why: str
    broken: bool


class RecipientRow(msgspec.Struct, frozen=True):
    """A recipient as sent to. `variables` is JSON or None; `suppressed` a reason or None."""

    id: UUID
    rcpt: str
    address: str
    name: str | None
    variables: bytes | None
    suppressed: str | None
    key_id: int | None = None  # of what sealed its variables
    barred: Barred | None = None  # why it cannot be made


class MessageRow(msgspec.Struct, frozen=True):
    """A message's content, as stored."""

    id: UUID
    created_at: datetime
    mode: str
    recipients: int
    template: str | None
    template_version: int | None
    content: bytes
    scheduled_at: datetime | None = None
    key_id: int | None = None  # of what sealed it
    test: bool = False  # it goes to the sandbox, and nowhere else
    traceparent: str | None = None  # its caller's trace (W3C Trace Context)


async def claim_each(
    database: Database, epoch: int, claims: Sequence[tuple[int, Sequence[Claim]]], seen: list[Lease]
) -> list[list[Lease]]:
    """Claim for several tenants, a statement each, in one transaction. Leases in the order of `claims`.

    What was claimed is in `seen` before it is committed: if the commit's answer is lost, the caller knows which
    rows may be its own.
    """
    asked = [(_Q["claim"], _claim_values(tenant, epoch, mine)) for tenant, mine in claims]
    async with AsyncExitStack() as stack:
        connection = await stack.enter_async_context(database.connection())
        if len(asked) > 1:
            await stack.enter_async_context(connection.pipeline())
        await stack.enter_async_context(connection.transaction())
        answers = await fetch_each(connection, asked)
        found = [
            [Lease(tenant, *row) for row in rows] for (tenant, _), rows in zip(claims, answers, strict=True)
        ]
        seen.extend(lease for leases in found for lease in leases)
    return found


def _claim_values(tenant: int, epoch: int, claims: Sequence[Claim]) -> dict[str, object]:
    return {
        "tenant": tenant,
        "epoch": epoch,
        "lanes": [c.lane for c in claims],
        "due": [c.due for c in claims],
        "after": [c.after for c in claims],
        "limits": [c.limit for c in claims],
        "traced": [c.traced for c in claims],
        "holds": [c.holds for c in claims],
    }


async def late(
    database: Database, tenant: int, heads: Sequence[tuple[int, datetime, datetime, UUID]], most: int
) -> dict[int, tuple[datetime, int]]:
    """What waits behind heads: by lane when the first of it was due, and how many there are, `most` at most.

    `heads` are (lane, since when to look, due, after), the last two the head. Locks nothing; it may take long.
    """
    values = {
        "tenant": tenant,
        "lanes": [lane for lane, *_ in heads],
        "since": [since for _, since, _, _ in heads],
        "due": [due for _, _, due, _ in heads],
        "after": [after for *_, after in heads],
        "most": most,
    }
    return {lane: (due, rows) for lane, due, rows in await database.tuples(_Q["late"], values)}


async def begin_each(
    database: Database, epoch: int, batches: Sequence[tuple[int, Sequence[tuple[Lease, str]]]]
) -> list[dict[UUID, str]]:
    """Commit the intent to send leases, each to its relay; by tenant, in one transaction.

    Answers `begun` or `locked` (try again) for each; what is not answered was fenced out. Raises FencedOut.
    """
    asked = [
        {
            "tenant": tenant,
            "epoch": epoch,
            "ids": [lease.id for lease, _ in mine],
            "claims": [lease.claims for lease, _ in mine],
            "relays": [relay for _, relay in mine],
        }
        for tenant, mine in batches
    ]
    if len(asked) == 1:
        return [dict(await database.tuples(_Q["begin"], asked[0]))]
    async with database.connection() as connection:
        answers = await fetch_each(connection, [(_Q["begin"], values) for values in asked])
    return [dict(rows) for rows in answers]


async def held_by(database: Database, tenant: int, epoch: int, lanes: Sequence[int]) -> list[Lease]:
    """What this worker holds in some lanes, by the database. Not quick: it reads the lanes."""
    values = {"tenant": tenant, "epoch": epoch, "lanes": list(lanes)}
    return [Lease(tenant, *row) for row in await database.tuples(_Q["held_by"], values)]


async def settle(
    database: Database, tenant: int, epoch: int, results: Sequence[Settlement]
) -> dict[UUID, str]:
    """Settle. Answers those that did not: `locked` (try again) or `fenced` (the lease was lost; it is recorded)."""
    return dict(await database.tuples(_Q["settle"], _settle_values(tenant, epoch, results)))


async def settle_each(
    database: Database, epoch: int, batches: Sequence[tuple[int, Sequence[Settlement]]]
) -> list[dict[UUID, str]]:
    """Settle for several tenants, a statement each, in one round trip and one transaction. Answers as `settle`."""
    if len(batches) == 1:
        return [await settle(database, batches[0][0], epoch, batches[0][1])]
    async with database.connection() as connection:
        answers = await fetch_each(
            connection, [(_Q["settle"], _settle_values(tenant, epoch, mine)) for tenant, mine in batches]
        )
    return [dict(rows) for rows in answers]


async def suppress_bounced(database: Database, most: int = 50) -> tuple[int, int]:
    """Suppress addresses of settled bounces. How many were looked at, and left since others have them in hand."""
    row = await database.one(_Q["suppress_bounced"], {"most": most})
    return (row.looked, row.busy) if row else (0, 0)


def _settle_values(tenant: int, epoch: int, results: Sequence[Settlement]) -> dict[str, object]:
    # What results share goes once: most of a batch differ in nothing but their ids, times and queue ids.
    groups: dict[tuple[object, ...], int] = {}
    numbers = []
    for r in results:
        key = (
            r.kind, r.lane, r.relay, r.code, r.enhanced, r.phase, r.remote_host, r.tls, r.stream, r.priority,
            r.site, r.delay, storable(r.reason), storable(r.error), r.began, r.doubt, r.suppress,
        )  # fmt: skip
        number = groups.get(key)
        if number is None:
            number = groups[key] = len(groups) + 1
        numbers.append(number)
    ms = [r.ms for r in results if r.ms is not None]
    return {
        "tenant": tenant,
        "epoch": epoch,
        "groups": Jsonb([dict(zip(_GROUP, key, strict=True)) for key in groups]),
        "ids": Uuids([r.id for r in results]),
        "messages": Uuids([r.message_id for r in results]),
        "claims": Integers([r.claims for r in results]),
        "group": Smallints(numbers),
        "attempts": Smallints([r.attempts for r in results]),
        "ms": Integers(ms) if len(ms) == len(results) else [r.ms for r in results],
        "replies": [storable(r.reply) for r in results],
    }


_GROUP = (
    "kind", "lane", "relay", "code", "enhanced", "phase", "remote_host", "tls", "stream", "priority", "site",
    "delay", "reason", "error", "began", "doubt", "suppress",
)  # fmt: skip


async def release(
    database: Database, tenant: int, epoch: int, leases: Sequence[Lease], reason: str | None = None
) -> set[UUID]:
    """Give leases back; with a reason each mail is told as delayed. Returns the ids that went back."""
    rows = await database.many(
        _Q["release"],
        {
            "tenant": tenant,
            "epoch": epoch,
            "ids": [lease.id for lease in leases],
            "claims": [lease.claims for lease in leases],
            "reason": storable(reason),
        },
    )
    return {row.id for row in rows}


async def postpone(
    database: Database, tenant: int, epoch: int, leases: Sequence[Lease], *, seconds: float, reason: str
) -> set[UUID]:
    """Give leases back to wait for so many seconds, told as delayed. Returns the ids that went back."""
    rows = await database.many(
        _Q["postpone"],
        {
            "tenant": tenant,
            "epoch": epoch,
            "ids": [lease.id for lease in leases],
            "claims": [lease.claims for lease in leases],
            "seconds": seconds,
            "reason": reason,
        },
    )
    return {row.id for row in rows}


async def still_leased(database: Database, tenant: int, epoch: int, leases: Sequence[Lease]) -> set[UUID]:
    """Which of these leases this worker still holds."""
    rows = await database.many(
        _Q["still_leased"],
        {
            "tenant": tenant,
            "epoch": epoch,
            "ids": [lease.id for lease in leases],
            "claims": [lease.claims for lease in leases],
        },
    )
    return {row.id for row in rows}


async def contents(
    database: Database, loads: Sequence[tuple[int, str, Sequence[UUID], Sequence[UUID]]], most: int
) -> tuple[list[tuple[list[RecipientRow], list[MessageRow]]], set[UUID]]:
    """What claimed rows need, in one round trip: for each (tenant, stream, recipients, messages) their rows.

    Their ids are the very objects that were asked for. And the messages that were not fetched because those before
    them have `most` bytes; one of each load always is.
    """
    people = [
        (_Q["recipients"], {"tenant": tenant, "stream": stream} | _span(ids))
        for tenant, stream, ids, _ in loads
    ]
    share = max(1, most // (sum(bool(ids) for *_, ids in loads) or 1))
    texts = [
        (_Q["messages"], {"tenant": tenant, "most": share} | _span(ids)) for tenant, _, _, ids in loads if ids
    ]
    async with database.connection() as connection:
        answers = iter(await fetch_each(connection, [*people, *texts]))
    mine = [
        [
            RecipientRow(ids[n - 1], rcpt, address, name, variables, suppressed, key_id)
            for n, rcpt, address, name, variables, suppressed, key_id in next(answers)
        ]
        for _, _, ids, _ in loads
    ]
    later: set[UUID] = set()
    found = []
    for people_, (_, _, _, ids) in zip(mine, loads, strict=True):
        rows = [MessageRow(ids[n - 1], *rest) for n, *rest in next(answers)] if ids else []
        if any(row.content is None for row in rows):
            later.update(row.id for row in rows if row.content is None)
            rows = [row for row in rows if row.content is not None]
        found.append((people_, rows))
    return found, later


def _span(ids: Sequence[UUID]) -> dict[str, object]:
    numbers = [id_.int for id_ in ids]  # ids compare slowly
    low, high = min(numbers), max(numbers)
    return {"ids": Uuids(ids), "low": ids[numbers.index(low)], "high": ids[numbers.index(high)]}


async def attachments(database: Database, tenant: int, message_id: UUID) -> list[Any]:
    """The attachments of one message: filename, content_type, content_id, asset, body, key_id, position."""
    return await database.many(_Q["attachments"], {"tenant": tenant, "id": message_id})


async def template(database: Database, tenant: int, name: str, version: int) -> Any | None:
    """One version of a template: subject, body_text, body_html, depends."""
    return await database.one(_Q["template"], {"tenant": tenant, "name": name, "version": version})


async def suppressed(database: Database, tenant: int, stream: str, address: str) -> str | None:
    """Why an address gets no mail of a stream by now, or None."""
    row = await database.one(_Q["suppressed"], {"tenant": tenant, "stream": stream, "address": address})
    return None if row is None else str(row.reason)


async def streams(database: Database) -> list[StreamRow]:
    """Every stream's policy."""
    return [StreamRow(*row) for row in await database.many(_Q["streams"])]


async def sealed_elsewhere(database: Database, mine: Collection[str]) -> frozenset[int]:
    """The tenants whose sealed mail other running workers open, and who has these keys only does not."""
    rows = await database.many(_Q["sealed_elsewhere"], {"mine": list(mine)})
    return frozenset(row.tenant for row in rows)


async def relays(database: Database) -> list[RelayRow]:
    """Every relay's health."""
    return [RelayRow(*row) for row in await database.many(_Q["relays"])]


async def relay_state(
    database: Database, name: str, state: str, reason: str | None, seconds: float | None
) -> None:
    """Tell the fleet how a relay is: up, away or paused, and for how long."""
    await database.run(
        _Q["relay_state"], {"name": name, "state": state, "reason": storable(reason), "seconds": seconds}
    )


async def fold_and_refresh(database: Database, version: int | None) -> tuple[list[LaneRow], datetime]:
    """Fold touches, then read the lanes that changed since `version` (None: all active ones). One round trip.

    Also the database's time.
    """
    changed = (_Q["lanes_active"], None) if version is None else (_Q["lanes_since"], {"version": version})
    async with database.connection() as connection:
        ((_, now),), rows = await fetch_each(connection, [(_Q["fold_touches"], None), changed])
    return [LaneRow(*row) for row in rows], now


async def idle(database: Database, tenant: int, lanes: Sequence[int]) -> int:
    """Let lanes go idle that were empty for a quiet time. Returns how many did."""
    row = await database.one(_Q["lanes_idle"], {"tenant": tenant, "lanes": list(lanes)})
    return int(row.idled) if row else 0
