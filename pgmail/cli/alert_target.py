"""`pgmail alert target`: who is told of alerts, and whether that works.

What can go wrong: a URL on the command line stands in the shell's history; `--url @FILE` or `@-` reads it from
elsewhere. Without PGMAIL_SEAL_KEYS it lies unsealed in the database; the keys must be those of the leading process.
"""

from __future__ import annotations

import asyncio
from typing import Any

import click

from pgmail.cli import common, output
from pgmail.errors import PgmailError

WAIT_SECONDS = 20.0  # for a test to be sent: a look, a call and its time limit
_LIST = {
    "name": "name",
    "tenant": "tenant",
    "kind": "kind",
    "shown": "to",
    "severity": "from",
    "sealed": "sealed",
    "told_at": "last told",
    "failing_since": "failing since",
    "waiting": "waiting",
    "answer": "why",
}
_own = click.option("--own", is_flag=True, help="Of this role's tenant, not of the fleet.")


@click.group(short_help="Who is told of alerts.")
def target() -> None:
    """Say who is told: a webhook, a Slack-shaped URL, addresses."""


@target.command()
@click.argument("name")
@_own
@click.option("--webhook", type=common.Text(), metavar="URL", help="POST JSON to a URL; @FILE reads it.")
@click.option("--slack", type=common.Text(), metavar="URL", help="POST what Slack's incoming webhooks take.")
@click.option(
    "--email", multiple=True, metavar="ADDRESS", help="Mail straight through a relay; may be repeated."
)
@click.option(
    "--secret",
    type=common.Text(),
    metavar="TEXT",
    help="Signs a webhook's calls (Standard Webhooks); 16 characters or more.",
)
@click.option(
    "--severity",
    type=click.Choice(["info", "warning", "critical"]),
    default="warning",
    show_default=True,
    help="The least that it is told.",
)
def add(name: str, own: bool, secret: str | None, severity: str, **ways: Any) -> None:
    """Tell somebody of alerts from now on."""
    given = {kind: list(way) if kind == "email" else way for kind, way in ways.items()}
    chosen = [(kind, value) for kind, value in given.items() if value]
    if len(chosen) != 1:
        raise click.UsageError("give one of --webhook, --slack and --email")
    ((kind, value),) = chosen

    async def act() -> None:
        from pgmail import alerting  # noqa: PLC0415
        from pgmail.sealing import keks  # noqa: PLC0415

        settings = common.settings()
        made = alerting.Target(
            name=name,
            kind=kind,
            url=value.strip() if isinstance(value, str) else None,
            to=value if isinstance(value, list) else None,
            secret=secret.strip() if secret else None,
            severity=severity,
        )
        async with common.database() as connection:
            await alerting.add_target(
                connection, keks.read(settings), settings.hook_networks, made, fleet=not own
            )

    common.run(act())
    click.echo(f"{name} is told from now on; pgmail alert target test {name} tries it")


@target.command("list")
@_own
@common.as_json
def list_(own: bool, as_json: bool) -> None:
    """List who is told, and how that goes."""

    async def ask() -> list[Any]:
        from pgmail.store import alerts  # noqa: PLC0415

        async with common.database() as connection:
            return await alerts.targets(connection, every=not own)

    output.show(common.run(ask()), _LIST, as_json=as_json, none="nobody is told: pgmail alert target add")


@target.command()
@click.argument("name")
@_own
@click.option("--reason", metavar="TEXT", help="Why, for the record.")
def remove(name: str, own: bool, reason: str | None) -> None:
    """Tell it of nothing from now on."""

    async def act() -> bool:
        from pgmail.store import alerts  # noqa: PLC0415

        async with common.database() as connection:
            return await alerts.remove_target(connection, name, reason=reason, fleet=not own)

    if not common.run(act()):
        raise PgmailError(f"no such target is named {name}")
    click.echo(f"{name} is told of nothing any more")


@target.command()
@click.argument("name")
@_own
def test(name: str, own: bool) -> None:
    """Have the leading process send a test, and say how that went."""

    async def act() -> Any:
        from pgmail.store import alerts  # noqa: PLC0415

        async with common.database() as connection:
            id_ = await alerts.send_test(connection, name, fleet=not own)
            until = asyncio.get_running_loop().time() + WAIT_SECONDS
            row: Any = await alerts.delivery(connection, id_, fleet=not own)
            while row.state == "waiting" and asyncio.get_running_loop().time() < until:
                await asyncio.sleep(0.2)
                row = await alerts.delivery(connection, id_, fleet=not own)
            return row

    row = common.run(act())
    if row.state == "waiting":
        raise PgmailError(
            f"nobody sent it within {WAIT_SECONDS:g} s: is a worker or pgmail maintain running?"
        )
    if row.state == "failed":
        raise PgmailError(f"{name} was not told: {row.answer}")
    click.echo(f"{name} was told" + (f": {row.answer}" if row.answer else ""))
