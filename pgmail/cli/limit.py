"""`pgmail limit`: how fast the whole fleet sends to a site or a relay or for a tenant, and over how many connections.

Workers obey a change within a second. What can go wrong: a limit so low that mail waits for days; `pgmail why`
and `pgmail queue` say which limit holds mail back.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from pgmail.cli import common, output
from pgmail.errors import PgmailError

_LIST = {
    "scope": "of",
    "name": "name",
    "rate": "rate",
    "connections": "connections",
    "ramp_seconds": "ramp s",
    "shipped": "default",
    "changed_by": "by",
    "note": "note",
}
_UNITS = {"s": 1, "second": 1, "min": 60, "minute": 60, "h": 3_600, "hour": 3_600, "d": 86_400, "day": 86_400}
_WORDS = {1: "s", 60: "min", 3_600: "h", 86_400: "day"}
_RATE = re.compile(r"([1-9]\d{0,8}) ?(?:/|per) ?(?:(\d+(?:\.\d+)?) ?s|([a-z]+))")
F = TypeVar("F", bound=Callable[..., Any])


def rate_of(text: str) -> tuple[int, float]:
    """Return messages and seconds of `100/s`, `10/min`, `5000/h`, `1/day` or `3/90s`. ValueError otherwise."""
    match = _RATE.fullmatch(text.strip().lower())
    seconds = None if match is None else float(match[2]) if match[2] else _UNITS.get(match[3])
    if match is None or not seconds:
        raise ValueError(f"{text!r} is not a rate such as 100/s, 10/min, 5000/h or 3/90s")
    return int(match[1]), float(seconds)


def rate_text(messages: int | None, per_seconds: float) -> str | None:
    """Return a rate as `rate_of` reads it; None where there is none."""
    if messages is None:
        return None
    return f"{messages}/{_WORDS.get(int(per_seconds)) if per_seconds in _WORDS else f'{per_seconds:g}s'}"


def _target(command: F) -> F:
    """Give a command the options that say whose limit is meant."""
    for option in (
        click.option("--tenant", metavar="NAME", help="A tenant."),
        click.option("--relay", metavar="NAME", help="A relay; it may be one that no worker knows yet."),
        click.option("--site", metavar="DOMAIN", help="A receiving site, such as gmail.com."),
    ):
        command = option(command)
    return command


@click.group(short_help="Limits: how fast, and over how many connections.")
def limit() -> None:
    """List, set and remove limits of sites, relays and tenants. They hold across the whole fleet."""


@limit.command("list")
@common.as_json
def list_(as_json: bool) -> None:
    """List limits: relays', tenants', sites'. What is marked as default came with pgmail."""

    async def ask() -> list[Any]:
        from pgmail.store import lanes  # noqa: PLC0415

        async with common.database() as connection:
            return await lanes.limits(connection)

    rows = [output.plain(row) for row in common.run(ask())]
    if not as_json:
        rows = [row | {"rate": rate_text(row["messages"], row["per_seconds"])} for row in rows]
    output.show(rows, _LIST, as_json=as_json, none="nothing is limited")


@limit.command("set")
@_target
@click.option("--rate", metavar="RATE", help="Messages in a time: 100/s, 10/min, 5000/h, 3/90s, or none.")
@click.option("--connections", metavar="N", help="Connections at once, or none. Not of a tenant.")
@click.option(
    "--ramp-seconds",
    metavar="S",
    type=float,
    help="Of a relay: time in which its rate is reached. Defaults to 30.",
)
@click.option("--note", metavar="TEXT", help="Where the figures come from.")
def set_(
    rate: str | None, connections: str | None, ramp_seconds: float | None, note: str | None, **of: str | None
) -> None:
    """Limit a site, a relay or a tenant, or change what is given of its limit. Workers obey within a second."""
    scope, name = _one(of)
    changes: dict[str, object] = {}
    if rate is not None:
        changes |= {"messages": None} if rate == "none" else _rate(rate)
    if connections is not None:
        changes["connections"] = common.whole_or_none(connections, "--connections")
    changes |= {
        key: value for key, value in {"ramp_seconds": ramp_seconds, "note": note}.items() if value is not None
    }
    if not changes:
        raise click.UsageError("give --rate, --connections, --ramp-seconds or --note")

    async def act() -> str:
        from pgmail.store import lanes  # noqa: PLC0415

        async with common.database() as connection:
            return await lanes.set_limit(connection, scope, name, changes)

    click.echo(f"limited {scope} {common.run(act())}")


@limit.command()
@_target
def remove(**of: str | None) -> None:
    """Remove a limit, one of the defaults too: an upgrade does not bring it back."""
    scope, name = _one(of)

    async def act() -> bool:
        from pgmail.store import lanes  # noqa: PLC0415

        async with common.database() as connection:
            return await lanes.remove_limit(connection, scope, name)

    if not common.run(act()):
        raise PgmailError(f"{scope} {name} has no limit")
    click.echo(f"{scope} {name} is no longer limited")


def _one(given: dict[str, str | None]) -> tuple[str, str]:
    """Return whose limit is meant; wrong usage if nobody's or more than one's is."""
    chosen = [(scope, name) for scope, name in given.items() if name is not None]
    if len(chosen) != 1:
        raise click.UsageError("give one of --site, --relay and --tenant")
    return chosen[0]


def _rate(text: str) -> dict[str, object]:
    try:
        messages, per_seconds = rate_of(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--rate") from None
    return {"messages": messages, "per_seconds": per_seconds}
