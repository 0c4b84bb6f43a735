"""What a check of `pgmail doctor` comes to, and how it asks."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from pgmail.sqlfiles import queries
from pgmail.store.single import fetch_dicts

if TYPE_CHECKING:
    from pgmail.store.single import Connection

Status = Literal["failed", "warning", "ok", "skipped"]

# A process that beats takes a lead that lapsed within half a second: between one leader and the next nothing is wrong.
LEAD_SECONDS, LEAD_LOOKS = 0.5, 4


class Finding(msgspec.Struct, frozen=True):
    """What one check found. `mend` is a command, or what to do in words."""

    check: str
    status: Status
    message: str
    mend: str | None = None


async def ask(connection: Connection, name: str, **values: object) -> list[dict[str, Any]]:
    """Return the rows of one of the doctor's questions. Raises StatementFailed where the role may not ask it."""
    return await fetch_dicts(connection, queries("cli_doctor")[name], values)


async def leader(connection: Connection) -> int | None:
    """Return the epoch of the process that leads; None if nobody does, nor any process that beats comes to."""
    for look in range(LEAD_LOOKS + 1):
        (row,) = await ask(connection, "leader")
        if row["leads"]:
            return int(row["epoch"])
        if not row["candidates"]:
            return None
        if look < LEAD_LOOKS:
            await asyncio.sleep(LEAD_SECONDS)
    return None


def span(seconds: float) -> str:
    """Return seconds in the unit that says them best."""
    for size, word in ((172_800, 86_400), (7_200, 3_600), (120, 60)):
        if seconds >= size:
            return f"{seconds / word:.0f} {_WORDS[word]}"
    return f"{seconds:.0f} seconds"


def minute(at: datetime) -> str:
    """Return a moment to the minute, in UTC."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


_WORDS = {86_400: "days", 3_600: "hours", 60: "minutes"}
