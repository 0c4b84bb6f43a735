"""`pgmail tenant`: who shares this database, how they share it, and which database role speaks for whom.

These act as the schema's owner (PGMAIL_OWNER_DATABASE_URL, else the common one). What can go wrong: a role
that may log in but belongs to no tenant; everything it asks is refused as `no_tenant` until it is granted one.
"""

from __future__ import annotations

from typing import Any

import click

from pgmail.cli import common, output
from pgmail.errors import PgmailError

_LIST = {
    "id": "id",
    "name": "name",
    "weight": "weight",
    "senders": "senders",
    "roles": "database roles",
    "created_at": "created",
}


@click.group(short_help="Tenants, and the database roles that speak for them.")
def tenant() -> None:
    """List, create and weigh tenants, and let a database role speak for one."""


@tenant.command("list")
@common.as_json
def list_(as_json: bool) -> None:
    """List tenants."""

    async def ask() -> list[dict[str, Any]]:
        from pgmail.sqlfiles import queries  # noqa: PLC0415
        from pgmail.store.single import fetch_dicts  # noqa: PLC0415

        async with common.database("owner") as connection:
            return await fetch_dicts(connection, queries("cli_operate")["tenants"])

    output.show(common.run(ask()), _LIST, as_json=as_json)


@tenant.command()
@click.argument("name")
@click.option(
    "--senders",
    type=click.Choice(["any", "verified"]),
    help="From which domains it may send: any, or those it verified. Defaults to verified.",
)
@common.as_json
def create(name: str, senders: str | None, as_json: bool) -> None:
    """Create a tenant with the streams transactional and broadcast."""

    async def act() -> int:
        from pgmail.sqlfiles import queries  # noqa: PLC0415
        from pgmail.store import domains  # noqa: PLC0415
        from pgmail.store.single import fetch_dicts  # noqa: PLC0415

        async with common.database("owner") as connection:
            (row,) = await fetch_dicts(connection, queries("cli_operate")["create_tenant"], {"name": name})
            if senders is not None:
                await domains.set_rule(connection, name, senders, "at its creation")
        return int(row["id"])

    made = common.run(act())
    if as_json:
        output.print_json({"id": made, "name": name})
    else:
        click.echo(f"created tenant {name} ({made})")


@tenant.command("set")
@click.argument("name")
@click.option(
    "--weight",
    type=float,
    help="Its share beside other tenants: 2 gets twice what 1 gets while both have mail. New ones have 1.",
)
@click.option(
    "--senders",
    type=click.Choice(["any", "verified"]),
    help="From which domains it may send: any, or those it verified (`pgmail domain`).",
)
@click.option("--reason", metavar="TEXT", help="Why; kept in the record.")
def set_(name: str, weight: float | None, senders: str | None, reason: str | None) -> None:
    """Change a tenant: its share beside the others, from which domains it may send."""
    if weight is None and senders is None:
        raise click.UsageError("give --weight or --senders")

    async def act() -> None:
        from pgmail.store import domains, lanes  # noqa: PLC0415

        async with common.database("owner") as connection:
            if weight is not None:
                await lanes.set_weight(connection, name, weight)
            if senders is not None:
                await domains.set_rule(connection, name, senders, reason)

    common.run(act())
    if weight is not None:
        click.echo(f"tenant {name} has the weight {weight:g}")
    if senders is not None:
        click.echo(f"tenant {name} sends from {senders} domains")


@tenant.command()
@click.argument("role")
@click.argument("tenant")
def grant(role: str, tenant: str) -> None:
    """Let the database role ROLE speak for TENANT from now on."""

    async def act() -> None:
        from pgmail.sqlfiles import queries  # noqa: PLC0415
        from pgmail.store.single import fetch_dicts  # noqa: PLC0415

        async with common.database("owner") as connection:
            ask = queries("cli_operate")
            (row,) = await fetch_dicts(connection, ask["role_exists"], {"role": role})
            if not row["found"]:
                raise PgmailError(f"the server has no role {role!r}; an administrator creates it")
            await fetch_dicts(connection, ask["grant_tenant"], {"role": role, "tenant": tenant})

    common.run(act())
    click.echo(f"{role} speaks for {tenant}")
