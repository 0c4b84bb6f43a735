"""`pgmail quota`: how much keys, tenants and streams may hand over, and when mail of low priority has to wait.

Rules hold within about a second. What can go wrong: a rule that stops an application nobody thought of; `list`
says what is closed at the moment and why, and `pgmail why` says it of each email that waits for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from pgmail.cli import common, output
from pgmail.errors import PgmailError

_LIST = {
    "scope": "of",
    "tenant": "tenant",
    "name": "name",
    "per_second": "a second",
    "per_day": "a day",
    "used_today": "used today",
    "max_queued": "queued",
    "pressure_depth": "low waits above",
    "pressure_seconds": "or after s",
    "bound_mails": "bound a day",
    "bound_bytes": "bound bytes",
    "changed_by": "by",
    "note": "note",
}
_CLOSED = {"tenant": "tenant", "stream": "stream", "kind": "closed by", "until": "until", "reason": "why"}
_LIMITS = (
    ("per-second", "Emails a second that may come in."),
    ("per-day", "Emails a day (UTC)."),
    ("max-queued", "Emails that may wait at once. Not of a key."),
    ("pressure-depth", "Above so many that wait, mail of low priority has to. Of a tenant or the fleet."),
    ("pressure-seconds", "The same, by how long the oldest has been due."),
    ("bound-mails", "Emails a day of one tenant that no wish of the sender passes."),
    ("bound-bytes", "The same in bytes of content."),
)
F = TypeVar("F", bound=Callable[..., Any])


def _target(command: F) -> F:
    """Give a command the options that say whose rule is meant."""
    for option in (
        click.option("--fleet", is_flag=True, help="All tenants together; bounds are each one's."),
        click.option("--key", metavar="ID", help="An API key; `pgmail key list` shows ids."),
        click.option("--stream", metavar="NAME", help="A stream, of --tenant or of this role's."),
        click.option("--tenant", metavar="NAME", help="A tenant. With --stream: whose stream it is."),
    ):
        command = option(command)
    return command


def _limits(command: F) -> F:
    """Give a command one option for each kind of limit."""
    for name, text in reversed(_LIMITS):
        command = click.option(f"--{name}", metavar="N", help=f"{text} Or none.")(command)
    return command


@click.group(short_help="Quotas: how much may come in.")
def quota() -> None:
    """List, set and remove quotas of keys, streams, tenants and the fleet. They hold within a second."""


@quota.command("list")
@common.as_json
def list_(as_json: bool) -> None:
    """List quotas with what is used of each, and what is closed now."""

    async def ask() -> tuple[list[Any], list[Any]]:
        from pgmail.store import quotas  # noqa: PLC0415

        async with common.database() as connection:
            return await quotas.listing(connection), await quotas.doors(connection)

    rows, doors = common.run(ask())
    if as_json:
        output.print_json(
            {"quotas": [output.plain(row) for row in rows], "closed": [output.plain(door) for door in doors]}
        )
        return
    # The fleet's rule bounds each tenant apart: nothing is used of it as a whole.
    shown = [
        row | {"used_today": None} if row["scope"] == "fleet" else row for row in map(output.plain, rows)
    ]
    output.show(shown, _LIST, as_json=False, none="nothing is limited")
    if doors:
        click.echo()
        output.show(doors, _CLOSED, as_json=False)


@quota.command("set")
@_target
@_limits
@click.option("--note", metavar="TEXT", help="Where the figures come from.")
def set_(
    tenant: str | None,
    stream: str | None,
    key: str | None,
    fleet: bool,
    note: str | None,
    **limits: str | None,
) -> None:
    """Limit a key, a stream, a tenant or the fleet, or change what is given of its rule."""
    scope, name = _one(tenant, stream, key, fleet=fleet)
    settings: dict[str, object] = {
        word: common.whole_or_none(text, f"--{word.replace('_', '-')}")
        for word, text in limits.items()
        if text is not None
    }
    if note is not None:
        settings["note"] = note
    if not settings:
        raise click.UsageError("give at least one limit, or --note")

    async def act() -> str:
        from pgmail.store import quotas  # noqa: PLC0415

        async with common.database() as connection:
            return await quotas.save(connection, scope, name, settings, tenant)

    click.echo(f"quota of {scope} {common.run(act()) or tenant or ''}".rstrip())


@quota.command()
@_target
def remove(tenant: str | None, stream: str | None, key: str | None, fleet: bool) -> None:
    """Remove a quota. What waits for it goes when it would have gone."""
    scope, name = _one(tenant, stream, key, fleet=fleet)

    async def act() -> bool:
        from pgmail.store import quotas  # noqa: PLC0415

        async with common.database() as connection:
            return await quotas.remove(connection, scope, name, tenant)

    if not common.run(act()):
        raise PgmailError(f"{scope} {name or tenant or ''} has no quota")
    click.echo(f"{scope} {name or tenant or ''} has no quota any more")


def _one(tenant: str | None, stream: str | None, key: str | None, *, fleet: bool) -> tuple[str, str | None]:
    """Return whose rule is meant; wrong usage if nobody's or more than one's is."""
    chosen: list[tuple[str, str | None]] = [
        (scope, name) for scope, name in (("stream", stream), ("key", key)) if name is not None
    ]
    if fleet:
        chosen.append(("fleet", None))
    if tenant is not None and not chosen:
        chosen.append(("tenant", None))
    if len(chosen) != 1 or (fleet and tenant is not None):
        raise click.UsageError("give one of --tenant, --stream, --key and --fleet")
    return chosen[0]
