"""`pgmail erase`: a person's data goes, the accounting stays.

What can go wrong: mail that is being sent this moment, or that names the person while others still wait for it,
is left; the exit code is 1 then, and the same command again reaches it later. It cannot be undone, so it asks
first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pgmail.cli import common, output
from pgmail.errors import PgmailError

if TYPE_CHECKING:
    from pgmail.store.people import Erasure


@click.command(short_help="Remove a person's data, keep the accounting.")
@click.argument("address")
@click.option(
    "--tenant", metavar="NAME", help="Of another tenant: an administrator's. Defaults to the role's."
)
@click.option("--reason", required=True, metavar="TEXT", help="Why; kept in the record, without the address.")
@click.option("--dry-run", is_flag=True, help="Count only; change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@common.as_json
def erase(address: str, *, tenant: str | None, reason: str, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Remove a person's data from all mail to ADDRESS: cancels what waits, keeps counts and any opt-out."""
    if not dry_run and not yes:
        common.confirm(f"Erase all data of {address}? This cannot be undone.")

    async def act() -> Erasure:
        from pgmail.store import people  # noqa: PLC0415

        async with common.database() as connection:
            return await people.erase(connection, address, reason, tenant=tenant, dry_run=dry_run)

    done = common.run(act())
    if as_json:
        import msgspec  # noqa: PLC0415

        facts = msgspec.to_builtins(done)
        facts.pop("next")
        output.print_json(facts | {"dry_run": dry_run, "complete": done.complete})
    else:
        click.echo(_words(done, dry_run=dry_run))
    if not dry_run and not done.complete:
        raise PgmailError(
            f"{done.too_late} emails are being sent and {done.waiting} name the person while others wait for them; "
            "run this again later"
        )


def _words(done: Erasure, *, dry_run: bool) -> str:
    would = "would be " if dry_run else ""
    return (
        f"{done.recipients} emails to the person {would}erased, {done.messages} contents changed; "
        f"{done.cancelled} waiting {would}cancelled, {done.discarded} dead letters {would}discarded"
        + (f"; {done.suppressions} suppressions {would}kept as a hash" if done.suppressions else "")
        + (f"; known as {done.person} from now on" if done.person and not dry_run else "")
    )
