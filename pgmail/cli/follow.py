"""`pgmail trace ID --follow`: the journey of one email as it happens, until each recipient's has ended.

It asks for the journey again and prints what it has not printed yet, by the events' ids: so nothing is missed and
nothing comes twice, whatever commits when, with no more rights than `pgmail trace` takes. What can go wrong: the
database goes away. It says so, waits, and goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click
import msgspec

from pgmail.cli import common, output
from pgmail.errors import DatabaseAway

if TYPE_CHECKING:
    from uuid import UUID

ASK_SECONDS = 0.2
AWAY_SECONDS = 1.0
ENDS = frozenset({"sent", "failed"})  # phases that are final


async def follow(id: UUID, columns: Mapping[str, str], *, as_json: bool) -> None:
    """Print events until all is settled. Refused `not_found` (404); as JSON, one object a line."""
    told: set[object] = set()
    away = False
    while True:
        try:
            async with common.database() as connection:
                while await _tell(connection, id, told, columns, as_json=as_json):
                    away = False
                    await asyncio.sleep(ASK_SECONDS)
                return
        except DatabaseAway as error:
            if not told:
                raise
            if not away:
                click.echo(f"{error}; waiting for it", err=True)
            away = True
            await asyncio.sleep(AWAY_SECONDS)


async def _tell(
    connection: Any, id: UUID, told: set[object], columns: Mapping[str, str], *, as_json: bool
) -> bool:
    """Print what is new; whether there may be more."""
    from pgmail import client  # noqa: PLC0415
    from pgmail.store import emails  # noqa: PLC0415

    # First where it stands, then what led there: of what is over by then, all is told.
    over = all(row.phase in ENDS for row in await client.status(connection, id))
    for row in await emails.events(connection, id):
        if row.event_id in told:
            continue
        told.add(row.event_id)
        facts = output.plain(row)
        if as_json:
            click.echo(msgspec.json.encode(facts, enc_hook=str).decode())
        else:
            click.echo(_line(facts, columns))
    return not over


def _line(facts: Mapping[str, Any], columns: Mapping[str, str]) -> str:
    """One event on one line: what it has no word for is left out."""
    at, kind, address, *rest = columns
    words = [output.cell(facts[at]), f"{output.cell(facts[kind]):<16}", output.cell(facts[address])]
    words += [
        f"{columns[key]} {output.cell(facts[key])}" if key in {"attempt", "ms"} else output.cell(facts[key])
        for key in rest
        if facts.get(key) not in {None, ""}
    ]
    return "  ".join(words).replace("\n", " ")
