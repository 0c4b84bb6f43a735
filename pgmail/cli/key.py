"""`pgmail key`: keys of the HTTP API. A key is shown once, when it is made; the database keeps its SHA-256.

The first key with the scope `admin` comes from here: only such a key makes others by HTTP. What can go wrong: a
key that is lost or leaked. Revoke it and make another; API processes notice within a second. To change a key
without a gap, rotate it: both work until the overlap has passed.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click

from pgmail.cli import common, output
from pgmail.domain.keys import SCOPES
from pgmail.errors import PgmailError, Refused

if TYPE_CHECKING:
    from pgmail.store.keys import Limits, Made

_LIST = {
    "id": "id",
    "name": "name",
    "hint": "begins with",
    "scopes": "scopes",
    "limits": "only",
    "created_at": "created",
    "created_by": "by",
    "last_used_at": "last used",
    "last_used_from": "from",
    "ends": "ends",
}
_ONCE = "This is the only time that the key is shown."


@click.group(short_help="Keys of the HTTP API.")
def key() -> None:
    """Make, list, rotate and revoke keys of the HTTP API."""


@key.command()
@click.argument("who", metavar="[NAME]", required=False)
@click.option("--name", metavar="TEXT", help="Who uses it; the same as NAME.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(SCOPES),
    help="What it may do; again for more. Without: send, read and manage; with --test only send.",
)
@click.option("--test", is_flag=True, help="For tests: what it sends goes to the sandbox only.")
@click.option("--stream", "streams", multiple=True, metavar="NAME", help="Only this stream; again for more.")
@click.option(
    "--domain", "domains", multiple=True, metavar="DOMAIN", help="Only from this domain, or *.example.com."
)
@click.option(
    "--network", "networks", multiple=True, metavar="CIDR", help="Only from this network; again for more."
)
@click.option("--expires", metavar="WHEN", help="When it ends: in 90d, 12h, or at a moment.")
@common.as_json
def create(
    *,
    who: str | None,
    name: str | None,
    scopes: tuple[Any, ...],
    test: bool,
    streams: tuple[str, ...],
    domains: tuple[str, ...],
    networks: tuple[str, ...],
    expires: str | None,
    as_json: bool,
) -> None:
    """Make a key for this database role's tenant, and print it: this once."""
    if (who is None) == (name is None):
        raise click.UsageError("say once who uses the key, as NAME")
    from pgmail.store.keys import Limits  # noqa: PLC0415 - the driver takes longer to load than most commands

    limits = Limits(
        scopes=list(scopes) or None,
        test=test,
        streams=list(streams) or None,
        from_domains=_domains(domains),
        networks=list(networks) or None,
        expires_at=_end(expires),
    )
    _show(common.run(_make(str(who or name), limits)), as_json=as_json)


async def _make(name: str, limits: Limits) -> Made:
    from pgmail.store import domains, keys  # noqa: PLC0415

    async with common.database() as connection:
        made = await keys.create(connection, name, limits)
        rule = await domains.rule(connection)
    if rule is not None and rule.senders == "any" and not limits.from_domains:
        click.echo(
            f"pgmail: with this key mail can be sent as anybody: tenant {rule.name} may send from any domain. "
            f"`pgmail domain add` yours, then `pgmail tenant set {rule.name} --senders verified`",
            err=True,
        )
    return made


@key.command("list")
@common.as_json
def list_(as_json: bool) -> None:
    """List keys, oldest first, those that ended too."""

    async def ask() -> list[Any]:
        from pgmail.store import keys  # noqa: PLC0415

        async with common.database() as connection:
            return await keys.listing(connection)

    rows = common.run(ask())
    shown = rows if as_json else [_told(row._asdict()) for row in rows]
    output.show(shown, _LIST, as_json=as_json, none="no keys; make one with `pgmail key create`")


@key.command()
@common.email_id
@click.option(
    "--overlap",
    metavar="TIME",
    default="24h",
    show_default=True,
    callback=common.span,
    help="For how long both work: 24h, 7d; 0s ends the old one at once.",
)
@click.option("--reason", metavar="TEXT", help="Why; kept in the record.")
@common.as_json
def rotate(id: UUID, overlap: timedelta, reason: str | None, as_json: bool) -> None:
    """Make a key with the limits of another, which ends after the overlap."""

    async def act() -> tuple[Made, datetime]:
        from pgmail.store import keys  # noqa: PLC0415

        async with common.database() as connection:
            return await keys.rotate(connection, id, overlap, reason)

    made, ends = common.run(act())
    _show(made, as_json=as_json, replaces=id, replaced_expires_at=ends)
    click.echo(f"The key {id} ends at {output.cell(ends)}.", err=True)


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


@key.command("end-sessions", short_help="Sign everybody out of the dashboard.")
@click.option("--reason", metavar="TEXT", help="Why; kept in the record.")
def end_sessions(reason: str | None) -> None:
    """Sign everybody out of the dashboard, of every tenant; the keys themselves go on working.

    One key's sessions end with the key: see `pgmail key revoke`.
    """

    async def act() -> None:
        from pgmail.store import keys  # noqa: PLC0415

        async with common.database() as connection:
            await keys.end_sessions(connection, reason)

    common.run(act())
    click.echo("All sessions end within ten seconds.")


def _domains(given: tuple[str, ...]) -> list[str] | None:
    from pgmail.domain.keylimits import normalise  # noqa: PLC0415

    found = []
    for domain in given:
        try:
            found.append(normalise(domain))
        except ValueError as error:
            raise Refused("invalid_domain", "/domain", f"{domain}: {error}") from None
    return found or None


def _end(text: str | None) -> datetime | None:
    if text is not None and (span := common.read_span(text)) is not None:
        return common.now() + span
    return common.moment(text, "expires")


def _show(made: Made, *, as_json: bool, **more: object) -> None:
    if as_json:
        output.print_json(output.plain(made) | more)
    else:
        click.echo(made.key)
        click.echo(_ONCE, err=True)


def _told(row: dict[str, Any]) -> dict[str, Any]:
    """Say a key's limits in one cell, and when it ended or will."""
    limits = ["tests"] if row["test"] else []
    for name in ("streams", "from_domains", "networks"):
        if row[name] is not None:
            limits += row[name]
    return row | {"limits": limits, "ends": row["revoked_at"] or row["expires_at"]}
