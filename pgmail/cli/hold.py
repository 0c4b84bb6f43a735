"""`pgmail hold | release ID`: an operator stops one email, or one recipient of it, and lets it go.

What can go wrong: a hold that comes too late, or a release of what may have been sent already (held in doubt).
Both say so and exit with 1; what they reached, they did.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

import click

from pgmail.cli import common, output
from pgmail.errors import PgmailError

_reason = click.option("--reason", metavar="TEXT", help="Why; kept in the record.")


@click.command(short_help="Stop an email until it is released.")
@common.email_id
@_reason
@common.as_json
def hold(id: UUID, reason: str | None, as_json: bool) -> None:
    """Stop what was not sent yet of an email (or of one recipient) until it is released."""

    async def ask() -> dict[str, Any]:
        from pgmail.store import emails  # noqa: PLC0415

        async with common.database() as connection:
            return await emails.hold(connection, id, reason)

    answer = common.run(ask())
    late = f", too late for {answer['too_late']}" if answer["too_late"] else ""
    _tell(answer, "held", late, as_json=as_json)
    if not answer["held"]:
        raise PgmailError("too late: nothing was held")


@click.command(short_help="Let an email that is held go again.")
@common.email_id
@_reason
@common.as_json
def release(id: UUID, reason: str | None, as_json: bool) -> None:
    """Let an email (or one recipient) that is held go again, at its old time."""

    async def ask() -> dict[str, Any]:
        from pgmail.store import emails  # noqa: PLC0415

        async with common.database() as connection:
            return await emails.release(connection, id, reason)

    answer = common.run(ask())
    more = f"; {answer['in_doubt']} in doubt stay held" if answer["in_doubt"] else ""
    if answer["busy"]:
        more += f"; {answer['busy']} are being changed by another transaction: ask again"
    _tell(answer, "released", more, as_json=as_json)
    if answer["status"] == "busy":
        raise PgmailError("another transaction is changing it at this moment: ask again")
    if not answer["released"]:
        raise PgmailError("nothing of it is held")


def _tell(answer: dict[str, Any], done: str, more: str, *, as_json: bool) -> None:
    if as_json:
        output.print_json(answer)
    elif answer[done]:
        total = sum(count for count in answer.values() if isinstance(count, int))
        click.echo(f"{done} {answer[done]} of {total} recipients{more}")
