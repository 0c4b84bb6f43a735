"""`pgmail tenant`: who shares this database, how they share it, and which database role speaks for whom.

These act as the schema's owner (PGMAIL_OWNER_DATABASE_URL, else the common one). What can go wrong: a role
that may log in but belongs to no tenant; everything it asks is refused as `no_tenant` until it is granted one.
An erasure that is interrupted leaves the tenant suspended and its door shut; the same command goes on with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import click

from pgmail.cli import common, output
from pgmail.errors import PgmailError

_LIST = {
    "id": "id",
    "name": "name",
    "weight": "weight",
    "suspended": "suspended for",
    "senders": "senders",
    "roles": "database roles",
    "created_at": "created",
}

SENDING_SECONDS = 60
"""For how long an erasure waits for mail that is on the wire this moment."""


async def _ask(name: str, params: Mapping[str, object]) -> list[dict[str, Any]]:
    """Run a query of `cli_operate` as the owner."""
    from pgmail.sqlfiles import queries  # noqa: PLC0415
    from pgmail.store.single import fetch_dicts  # noqa: PLC0415

    async with common.database("owner") as connection:
        return await fetch_dicts(connection, queries("cli_operate")[name], params)


@click.group(short_help="Tenants, and the database roles that speak for them.")
def tenant() -> None:
    """List, create, weigh, suspend and erase tenants, and let database roles speak for them."""


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
    metavar="N",
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
        domains = "any domain" if senders == "any" else "verified domains"
        click.echo(f"tenant {name} sends from {domains}")


@tenant.command()
@click.argument("role")
@click.argument("tenant")
def grant(role: str, tenant: str) -> None:
    """Let the database role ROLE speak for TENANT from now on. Who speaks for another is revoked first."""

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


@tenant.command()
@click.argument("role")
@click.option("--reason", metavar="TEXT", help="Why; kept in the record.")
def revoke(role: str, reason: str | None) -> None:
    """Let the database role ROLE speak for nobody from now on, in open sessions too."""
    (row,) = common.run(_ask("revoke_tenant", {"role": role, "reason": reason}))
    if not row["revoked"]:
        raise PgmailError(f"{role} speaks for no tenant")
    click.echo(f"{role} speaks for nobody")


@tenant.command("role")
@click.argument("tenant")
@click.argument("role")
@click.option(
    "--kind",
    type=click.Choice(["producer", "analyst"]),
    required=True,
    help="A producer hands mail over and sees how it fares; an analyst reads, for psql and BI.",
)
@click.option("--content", is_flag=True, help="An analyst reads texts, files and variables, too.")
@click.option("--sql", "only_sql", is_flag=True, help="Print what an administrator would run; do nothing.")
def role_(tenant: str, role: str, kind: str, *, content: bool, only_sql: bool) -> None:
    """Make the database role ROLE, which speaks for TENANT. Set its password afterwards."""
    asked = {
        "prefix": common.settings().role_prefix,
        "role": role,
        "tenant": tenant,
        "kind": kind,
        "content": content,
    }
    if not only_sql:
        common.run(_ask("make_tenant_role", asked))
        click.echo(f"{role} is a role and speaks for {tenant}; set its password: \\password {role}")
        return
    for row in common.run(_ask("tenant_role_sql", asked)):
        click.echo(f"{row['statement']};")
    click.echo(f"-- and then: pgmail tenant grant {role} {tenant}")


@tenant.command()
@click.argument("name")
@click.option("--reason", required=True, metavar="TEXT", help="Why; its senders see it.")
def suspend(name: str, reason: str) -> None:
    """Stop all mail of a tenant until it is resumed. New mail waits, or follows its `on_limit`."""
    common.run(_ask("suspend_tenant", {"name": name, "reason": reason}))
    click.echo(f"tenant {name} is suspended")


@tenant.command()
@click.argument("name")
@click.option("--reason", metavar="TEXT", help="Why; kept in the record.")
def resume(name: str, reason: str | None) -> None:
    """Let the mail of a suspended tenant flow again."""
    common.run(_ask("resume_tenant", {"name": name, "reason": reason}))
    click.echo(f"tenant {name} is no longer suspended")


@tenant.command()
@click.argument("name")
@click.option("--reason", required=True, metavar="TEXT", help="Why; kept in the record.")
@click.option("--discard", is_flag=True, help="Give up mail that waits, and dead letters.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@common.as_json
def erase(name: str, *, reason: str, discard: bool, yes: bool, as_json: bool) -> None:
    """Remove a tenant and all that it has; keeps the totals of what it sent, and who did what."""
    if not yes:
        common.confirm(f"Erase the tenant {name} and all its mail? This cannot be undone.")
    done = common.run(_erase(name, reason, discard=discard))
    if as_json:
        output.print_json(done)
    else:
        click.echo(
            f"erased tenant {name} ({done['tenant']}): {done['deleted']} rows deleted, "
            f"{done['discarded']} waiting mails and dead letters given up"
        )


async def _erase(name: str, reason: str, *, discard: bool) -> dict[str, Any]:
    """Step by step, each a transaction of its own. PgmailError if mail is on the wire for too long."""
    from pgmail.sqlfiles import queries  # noqa: PLC0415
    from pgmail.store.single import fetch_dicts  # noqa: PLC0415

    ask = queries("cli_operate")["erase_tenant"]
    told = {"tenant": 0, "deleted": 0, "discarded": 0}
    waited = 0
    async with common.database("owner") as connection:
        while True:
            (row,) = await fetch_dicts(connection, ask, {"name": name, "reason": reason, "discard": discard})
            step = row["answer"]
            told |= {"tenant": step["tenant"]} | {
                key: told[key] + step[key] for key in ("deleted", "discarded")
            }
            if step["done"]:
                return told
            if step["deleted"] or step["discarded"]:
                continue
            if waited == SENDING_SECONDS:
                raise PgmailError(
                    f"{step['sending']} of its mails are still being sent; nothing new goes out; run this again"
                )
            waited += 1
            await asyncio.sleep(1)
