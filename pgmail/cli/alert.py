"""`pgmail alert`: what fires, the rules it comes from, silences. `alert_target` says who is told.

An operator's commands: they are about the fleet and all tenants, or with --own about the tenant that the role speaks
for. The leading process looks about every ten seconds, and obeys a change at the next look.

What can go wrong: nobody leads, and nothing is looked at; `pgmail doctor` says so.
"""

from __future__ import annotations

from typing import Any

import click

from pgmail.cli import common, output
from pgmail.cli.alert_target import target
from pgmail.errors import PgmailError

_LIST = {
    "severity": "severity",
    "state": "state",
    "rule": "rule",
    "subject": "about",
    "tenant": "tenant",
    "since": "since",
    "words": "what",
    "silenced": "silenced",
}
_RULES = {
    "name": "rule",
    "tenant": "tenant",
    "about": "about",
    "enabled": "on",
    "threshold": "threshold",
    "unit": "of",
    "floor": "floor",
    "minimum": "from",
    "window_seconds": "window s",
    "for_seconds": "for s",
    "severity": "severity",
    "firing": "firing",
    "changed_by": "by",
}
_SILENCES = {
    "rule": "silenced",
    "subject": "about",
    "tenant": "tenant",
    "until": "until",
    "silenced_by": "by",
    "reason": "why",
}
own = click.option(
    "--own", is_flag=True, help="Of this role's tenant alone, not of the fleet and all tenants."
)


@click.group(short_help="Alerts: what fires, rules, silences, who is told.")
def alert() -> None:
    """Show what fires, set rules, be quiet for a while, and say who is told."""


alert.add_command(target)


@alert.command("list")
@own
@click.option("--all", "all_", is_flag=True, help="Those that are over, too.")
@click.option("--rule", metavar="NAME", help="Of one rule.")
@click.option(
    "--limit", metavar="N", type=click.IntRange(1, 1_000), default=100, show_default=True, help="Most alerts."
)
@common.as_json
def list_(own: bool, all_: bool, rule: str | None, limit: int, as_json: bool) -> None:
    """List alerts that are open, and silences that hold."""

    async def ask() -> tuple[list[Any], list[Any]]:
        from pgmail.store import alerts  # noqa: PLC0415

        async with common.database() as connection:
            state = "all" if all_ else "open"
            rows = await alerts.listing(connection, every=not own, state=state, rule=rule, limit=limit)
            return rows, await alerts.silences(connection, every=not own)

    rows, silences = common.run(ask())
    if as_json:
        output.print_json(
            {
                "alerts": [output.plain(row) for row in rows],
                "silences": [output.plain(row) for row in silences],
            }
        )
        return
    output.show(rows, _LIST, as_json=False, none="nothing fires")
    if silences:
        click.echo()
        output.show(silences, _SILENCES, as_json=False)


@alert.command()
@click.argument("rule")
@own
@common.as_json
def show(rule: str, own: bool, as_json: bool) -> None:
    """Show a rule in full, and its last alerts."""

    async def ask() -> tuple[list[Any], list[Any]]:
        from pgmail.store import alerts  # noqa: PLC0415

        async with common.database() as connection:
            rules = [row for row in await alerts.rules(connection, every=not own) if row.name == rule]
            return rules, await alerts.listing(connection, every=not own, state="all", rule=rule, limit=20)

    rules, rows = common.run(ask())
    if not rules:
        raise PgmailError(f"no rule is named {rule}; pgmail alert rules lists them")
    if as_json:
        output.print_json(
            {"rules": [output.plain(row) for row in rules], "alerts": [output.plain(row) for row in rows]}
        )
        return
    for row in rules:
        output.show_one(row, as_json=False)
        click.echo()
    output.show(rows, _LIST, as_json=False, none="it never fired")


@alert.command()
@own
@common.as_json
def rules(own: bool, as_json: bool) -> None:
    """List rules, with what they are set to."""

    async def ask() -> list[Any]:
        from pgmail.store import alerts  # noqa: PLC0415

        async with common.database() as connection:
            return await alerts.rules(connection, every=not own)

    output.show(common.run(ask()), _RULES, as_json=as_json)


@alert.command("set")
@click.argument("rule")
@own
@click.option(
    "--kind", metavar="KIND", help="Of a new rule: what it looks at; kinds are named as shipped rules."
)
@click.option("--about", metavar="NAME", help="This stream, site or other subject alone.")
@click.option("--on/--off", "enabled", default=None, help="Whether it is looked at.")
@click.option("--threshold", metavar="N", type=float, help="Above this it is true.")
@click.option(
    "--floor",
    metavar="N",
    type=float,
    help="Of error_rate: the least share. Of replication: bytes that a slot keeps.",
)
@click.option("--minimum", type=int, metavar="N", help="Of rates: from so many results on.")
@click.option("--window-seconds", type=int, metavar="S", help="Of rates: the time that is looked back.")
@click.option("--for-seconds", type=int, metavar="S", help="How long it is true before anybody is told.")
@click.option("--calm-seconds", type=int, metavar="S", help="How long it is over before that is told.")
@click.option("--renotify-seconds", type=int, metavar="S", help="Told again so often; 0 is never.")
@click.option("--severity", type=click.Choice(["info", "warning", "critical"]), help="How bad it is.")
@click.option("--note", metavar="TEXT", help="What it is for.")
@click.option("--reason", metavar="TEXT", help="Why it is changed, for the record.")
def set_(rule: str, own: bool, reason: str | None, **given: Any) -> None:
    """Change what is given of a rule, or make one of a new name."""
    settings = {name: value for name, value in given.items() if value is not None}
    if not settings:
        raise click.UsageError("give at least one setting")
    if settings.get("renotify_seconds") == 0:
        settings["renotify_seconds"] = None

    async def act() -> None:
        from pgmail.store import alerts  # noqa: PLC0415

        async with common.database() as connection:
            await alerts.set_rule(connection, rule, settings, reason=reason, fleet=not own)

    common.run(act())
    click.echo(f"set {rule}")


@alert.command()
@click.argument("rule")
@own
@click.option("--reason", metavar="TEXT", help="Why, for the record.")
def remove(rule: str, own: bool, reason: str | None) -> None:
    """Remove a rule that was made here; shipped ones are switched off: alert set RULE --off."""

    async def act() -> bool:
        from pgmail.store import alerts  # noqa: PLC0415

        async with common.database() as connection:
            return await alerts.remove_rule(connection, rule, reason=reason, fleet=not own)

    if not common.run(act()):
        raise PgmailError(f"no such rule is named {rule}")
    click.echo(f"removed {rule}")


@alert.command()
@click.argument("rule")
@own
@click.option("--subject", default="*", metavar="NAME", help="Of this stream or other subject alone.")
@click.option(
    "--until", metavar="TIME", help="When it ends by itself, such as 'in 2 hours'. Defaults to never."
)
@click.option("--reason", required=True, metavar="TEXT", help="Why; shown to whoever looks.")
def silence(rule: str, own: bool, subject: str, until: str | None, reason: str) -> None:
    """Tell nobody of a rule's alerts for a while. They are looked at and shown as ever."""
    at = common.moment(until, "until")

    async def act() -> None:
        from pgmail.store import alerts  # noqa: PLC0415

        async with common.database() as connection:
            await alerts.silence(connection, rule, reason=reason, until=at, subject=subject, fleet=not own)

    common.run(act())
    click.echo(f"silenced {rule}" + (f" until {output.cell(at)}" if at else ""))


@alert.command()
@click.argument("rule")
@own
@click.option("--subject", default="*", metavar="NAME", help="As it was silenced.")
@click.option("--reason", metavar="TEXT", help="Why, for the record.")
def unsilence(rule: str, own: bool, subject: str, reason: str | None) -> None:
    """End a silence; what fires and was not told is told now."""

    async def act() -> bool:
        from pgmail.store import alerts  # noqa: PLC0415

        async with common.database() as connection:
            return await alerts.unsilence(connection, rule, reason=reason, subject=subject, fleet=not own)

    if not common.run(act()):
        raise PgmailError(f"{rule} is not silenced")
    click.echo(f"{rule} is told again")
