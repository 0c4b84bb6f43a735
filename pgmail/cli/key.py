"""`pgmail key`: keys of the HTTP API. A key is shown once, when it is made; the database keeps its SHA-256.

What can go wrong: a key that is lost or leaked. Revoke it and make another; API processes notice within a
second.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

import click

from pgmail.cli import common, output
from pgmail.errors import PgmailError

_LIST = {
    "id": "id",
    "name": "name",
    "hint": "begins with",
    "created_at": "created",
    "created_by": "by",
    "revoked_at": "revoked",
}


@click.group(short_help="Keys of the HTTP API.")
def key() -> None:
    """Make, list and revoke keys of the HTTP API."""


@key.command()
@click.option("--name", required=True, metavar="TEXT", help="Who uses it.")
@common.as_json
def create(name: str, as_json: bool) -> None:
    """Make a key for this database role's tenant, and print it: this once."""

    async def make() -> Any:
        from pgmail.store import domains, keys  # noqa: PLC0415

        async with common.database() as connection:
            made = await keys.create(connection, name)
            rule = await domains.rule(connection)
        if rule is not None and rule.senders == "any":
            click.echo(
                f"pgmail: with this key mail can be sent as anybody: tenant {rule.name} may send from any domain. "
                f"`pgmail domain add` yours, then `pgmail tenant set {rule.name} --senders verified`",
                err=True,
            )
        return made

    made = common.run(make())
    if as_json:
        output.print_json({"id": made.id, "name": name, "key": made.key, "hint": made.hint})
    else:
        click.echo(made.key)
        click.echo("This is the only time that the key is shown.", err=True)


@key.command("list")
@common.as_json
def list_(as_json: bool) -> None:
    """List keys, oldest first, the revoked ones too."""

    async def ask() -> list[Any]:
        from pgmail.store import keys  # noqa: PLC0415

        async with common.database() as connection:
            return await keys.listing(connection)

    output.show(common.run(ask()), _LIST, as_json=as_json, none="no keys; make one with `pgmail key create`")


@key.command()
@common.email_id
@click.option("--reason", metavar="TEXT", help="Why; kept in the record.")
def revoke(id: UUID, reason: str | None) -> None:
    """Revoke a key for good."""

    async def act() -> bool:
        from pgmail.store import keys  # noqa: PLC0415

        async with common.database() as connection:
            return await keys.revoke(connection, id, reason)

    if not common.run(act()):
        raise PgmailError(f"no valid key has the id {id}")
    click.echo(f"revoked {id}")
