"""`pgmail domain`: the domains that a tenant sends from, and the TXT records that prove whose they are.

`add` prints the record to publish, `verify` looks for it. What can go wrong: DNS takes its time. A server on
the way that was asked before the record was there says so until its TTL runs out; `verify` again later.
"""

from __future__ import annotations

from typing import Any

import click

from pgmail.cli import common, output
from pgmail.errors import PgmailError

_LIST = {
    "domain": "domain",
    "state": "state",
    "verified_at": "verified",
    "checked_at": "looked at",
    "counts_until": "counts until",
    "trusted_by": "trusted by",
    "answer": "what DNS said",
}
MOST = 10_000


@click.group(short_help="Domains that this tenant sends from.")
def domain() -> None:
    """Add, verify, trust and remove the domains that this tenant sends from."""


@domain.command()
@click.argument("domain")
@common.as_json
def add(domain: str, as_json: bool) -> None:
    """Add DOMAIN and print the TXT record that verifies it; again prints the same record."""

    async def act() -> Any:
        from pgmail.store import domains  # noqa: PLC0415

        async with common.database() as connection:
            return await domains.add(connection, domain)

    row = common.run(act())
    if as_json:
        output.print_json(_facts(row))
        return
    click.echo(_record(row))
    click.echo(f"Publish this record, then: pgmail domain verify {row.domain}", err=True)


@domain.command()
@click.argument("domain")
@common.as_json
def verify(domain: str, as_json: bool) -> None:
    """Look for the record of DOMAIN now; exit code 1 if it does not count as verified."""
    found = common.settings()

    async def act() -> Any:
        from pgmail.store import domains  # noqa: PLC0415
        from pgmail.transport import txt  # noqa: PLC0415

        async with common.database() as connection:
            row = await domains.get(connection, domain)
            if row.trusted_by is not None:
                return row
            look = await txt.look(row.domain, found.name_servers)
            await domains.checked(connection, row.id, look.outcome, list(look.found), look.said)
            return await domains.get(connection, str(row.id))

    row = common.run(act())
    if as_json:
        output.print_json(_facts(row))
    elif row.state == "verified":
        click.echo(f"{row.domain} is verified")
    if row.state != "verified":
        raise PgmailError(f"{row.domain} is not verified: {row.answer}; expected is {_record(row)}")
    if row.missing_since is not None:
        until = output.cell(row.counts_until)
        click.echo(f"pgmail: its record is missing, and it counts until {until}: {row.answer}", err=True)


@domain.command("list")
@common.as_json
def list_(as_json: bool) -> None:
    """List domains by name, with their records in JSON."""

    async def ask() -> list[Any]:
        from pgmail.store import domains  # noqa: PLC0415

        async with common.database() as connection:
            return await domains.listing(connection, limit=MOST)

    rows = [_facts(row) for row in common.run(ask())]
    output.show(rows, _LIST, as_json=as_json, none="no domains; add one with `pgmail domain add`")


@domain.command()
@click.argument("domain")
@click.option("--reason", metavar="TEXT", help="Why; kept in the record.")
def remove(domain: str, reason: str | None) -> None:
    """Take DOMAIN (or the one of this id) away; what is queued from it is still sent."""

    async def act() -> None:
        from pgmail.store import domains  # noqa: PLC0415

        async with common.database() as connection:
            await domains.remove(connection, domain, reason)

    common.run(act())
    click.echo(f"removed {domain}")


@domain.command()
@click.argument("domain")
@click.option("--reason", required=True, metavar="TEXT", help="Why no record is needed; kept in the record.")
@click.option("--tenant", metavar="NAME", help="Whose. Defaults to this database role's.")
def trust(domain: str, reason: str, tenant: str | None) -> None:
    """Vouch for DOMAIN: it counts as verified without a record. An admin's or the owner's to say."""

    async def act() -> None:
        from pgmail.store import domains  # noqa: PLC0415

        async with common.database() as connection:
            await domains.trust(connection, domain, reason, tenant)

    common.run(act())
    click.echo(f"trusted {domain}")


def _facts(row: Any) -> dict[str, Any]:
    from pgmail.transport import txt  # noqa: PLC0415

    return output.plain(row) | {"record": txt.record_of(row.domain), "value": txt.PREFIX + row.token}


def _record(row: Any) -> str:
    """Return the record as a zone file has it (RFC 1035, section 5)."""
    from pgmail.transport import txt  # noqa: PLC0415

    return f'{txt.record_of(row.domain)}. TXT "{txt.PREFIX}{row.token}"'
