"""`pgmail resume --after-restore`: what may have been sent before a database was restored, and what to do with it.

What can go wrong: deciding without looking. So the numbers are shown first, and the decision is asked for unless
`--yes`; `--dry-run` only shows. Without a choice mail in doubt is held, so that nobody gets it twice unseen.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click

from pgmail.cli import common, output
from pgmail.errors import PgmailError

_DONE = {
    "hold": "held: `pgmail queue` shows them, `pgmail trace` what is known of each",
    "resend": "sent again, each with an email.in_doubt event",
    "assume_sent": "settled as sent",
}
_LOST = {
    "tenant": "tenant",
    "recipients": "in doubt",
    "leased": "with a worker",
    "oldest": "enqueued from",
    "newest": "to",
}


def resume(
    decision: str, *, since: str | None, reason: str | None, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Show what is in doubt, ask, decide on all of it, and let mail flow again."""
    at = common.past(since, "since")
    fence, doubts = common.run(_look(at))
    if fence is None:
        raise PgmailError("no restore was noticed: nothing is stopped for one")
    if not as_json:
        click.echo(f"all sending is stopped since {output.cell(fence.noticed_at)}: {fence.reason}")
        if fence.seen is None:  # a person said so, and no process saw what is missing
            click.echo(
                "all that was enqueued before may have been sent; --since TIME names the moment of the backup"
            )
        elif fence.lost_from or fence.lost_until:
            click.echo(
                f"the database knows work up to {output.cell(fence.lost_from)}; "
                f"work of {output.cell(fence.lost_until)} was acknowledged and is missing"
            )
        if doubts:
            click.echo("these were enqueued before and due, and may have been sent since:")
        output.show(doubts, _LOST, as_json=False, none="no mail is in doubt")
    if dry_run:
        if as_json:
            output.print_json(
                {"fence": output.plain(fence), "in_doubt": [output.plain(row) for row in doubts]}
            )
        return
    if not reason:
        raise click.UsageError("give --reason: others will ask why")
    if not yes:
        common.confirm(f"They will be {_DONE[decision].partition(':')[0]}. Go on?")
    decided = common.run(_decide(decision, reason, at))
    if as_json:
        output.print_json({"decision": decision, "in_doubt": decided})
    else:
        if decided:
            click.echo(f"{decided} recipients in doubt are {_DONE[decision]}")
        click.echo("mail flows again")


def stop(reason: str) -> None:
    """Stop all sending, for the database was restored."""

    async def act() -> None:
        from pgmail.store import history  # noqa: PLC0415

        async with common.database() as connection:
            await history.stop_all(connection, reason)

    common.run(act())
    click.echo("all sending is stopped until `pgmail resume --after-restore`")


async def _look(since: datetime | None) -> tuple[Any | None, list[Any]]:
    from pgmail.store import history  # noqa: PLC0415

    async with common.database() as connection:
        fence = await history.fence(connection)
        return fence, await history.doubts(connection, since) if fence else []


async def _decide(decision: str, reason: str, since: datetime | None) -> int:
    from pgmail.store import history  # noqa: PLC0415

    async with common.database() as connection:
        return await history.decide(connection, decision, reason, since)
