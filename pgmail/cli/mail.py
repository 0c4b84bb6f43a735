"""`pgmail status | trace | why | cancel | reschedule ID`: one email, or one recipient of it, by its id.

What can go wrong: a cancel that comes too late. It says so and exits with 1; what it reached in time, it did.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import click

from pgmail.cli import common, output
from pgmail.errors import PgmailError

if TYPE_CHECKING:
    from pgmail.client import Change

_STATUS = {
    "address": "recipient",
    "state": "state",
    "phase": "phase",
    "attempts": "attempts",
    "due_at": "due",
    "changed_at": "since",
    "code": "code",
    "reply": "reply",
    "reason": "reason",
}
_TRACE = {
    "at": "at",
    "type": "event",
    "address": "recipient",
    "attempt": "attempt",
    "code": "code",
    "reply": "reply",
    "relay": "relay",
    "remote_host": "host",
    "ms": "ms",
    "detail": "detail",
}


@click.command(short_help="Where each recipient of an email stands.")
@common.email_id
@common.as_json
def status(id: UUID, as_json: bool) -> None:
    """Show where each recipient of an email stands (or the one recipient)."""

    async def ask() -> None:
        from pgmail import client  # noqa: PLC0415

        async with common.database() as connection:
            rows = await client.status(connection, id)
        output.show(rows, _STATUS, as_json=as_json)

    common.run(ask())


@click.command(short_help="The journey of an email, oldest first.")
@common.email_id
@click.option("--follow", "-f", is_flag=True, help="Go on as it happens, until every recipient is settled.")
@common.as_json
def trace(id: UUID, follow: bool, as_json: bool) -> None:
    """Show everything that happened to an email, oldest first."""

    async def ask() -> None:
        from pgmail.cli import follow as follower  # noqa: PLC0415
        from pgmail.store import emails  # noqa: PLC0415

        if follow:
            await follower.follow(id, _TRACE, as_json=as_json)
            return

        async with common.database() as connection:
            rows = await emails.events(connection, id)
        output.show(rows, _TRACE, as_json=as_json)

    common.run(ask())


@click.command(short_help="Why an email has not arrived yet, in words.")
@common.email_id
@common.as_json
def why(id: UUID, as_json: bool) -> None:
    """Say in words what each recipient waits for, or how it ended."""

    async def ask() -> None:
        from pgmail.sqlfiles import queries  # noqa: PLC0415
        from pgmail.store.single import fetch_dicts  # noqa: PLC0415

        async with common.database() as connection:
            (row,) = await fetch_dicts(connection, queries("cli_operate")["why"], {"id": id})
        if as_json:
            output.print_json({"id": id, "why": row["answer"].splitlines()})
        else:
            click.echo(output.cell(row["answer"]))

    common.run(ask())


@click.command(short_help="Cancel what was not sent yet.")
@common.email_id
@click.option("--reason", metavar="TEXT", help="Why; kept in the record.")
@common.as_json
def cancel(id: UUID, reason: str | None, as_json: bool) -> None:
    """Cancel what was not sent yet of an email (or of one recipient)."""

    async def ask() -> Change:
        from pgmail import client  # noqa: PLC0415

        async with common.database() as connection:
            change: Change = await client.cancel(connection, id, reason)
        return change

    _tell(common.run(ask()), "cancelled", as_json=as_json)


@click.command(short_help="Move what was not sent yet to another moment.")
@common.email_id
@click.argument("at")
@common.as_json
def reschedule(id: UUID, at: str, as_json: bool) -> None:
    """Move what was not sent yet to AT: ISO 8601, or a phrase such as 'tomorrow at 9am' (UTC)."""

    async def ask() -> Change:
        from pgmail import client  # noqa: PLC0415
        from pgmail.client_bodies import moment  # noqa: PLC0415

        moment(at, common.now())  # refused although no database is there
        async with common.database() as connection:
            change: Change = await client.reschedule(connection, id, at)
        return change

    _tell(common.run(ask()), "rescheduled", as_json=as_json)


def _tell(change: Change, done: str, *, as_json: bool) -> None:
    if as_json:
        output.print_json(change)
    elif change.reached:
        late = f", too late for {change.too_late}" if change.too_late else ""
        click.echo(f"{done} {change.reached} of {change.reached + change.too_late} recipients{late}")
    if not change.reached:
        raise PgmailError(f"too late: nothing was {done}")
