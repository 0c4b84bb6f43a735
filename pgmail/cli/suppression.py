"""`pgmail suppression`: addresses that get no mail, from one stream or from all.

What can go wrong: taking somebody off the list who complained. `remove` keeps who did it and why.
"""

from __future__ import annotations

from typing import Any

import click

from pgmail.cli import common, output, suppression_files
from pgmail.errors import PgmailError, Refused

_LIST = {
    "address": "address",
    "stream": "stream",
    "reason": "reason",
    "source": "source",
    "created_at": "since",
    "created_by": "by",
    "expires_at": "until",
}
REASONS = "bounced, complained, unsubscribed, manual or invalid"
_stream = click.option("--stream", metavar="NAME", help="Only this stream. Defaults to all.")


@click.group(short_help="Addresses that get no mail.")
def suppression() -> None:
    """List, add, remove, import and export addresses that get no mail."""


suppression.add_command(suppression_files.export)
suppression.add_command(suppression_files.import_)


@suppression.command("list")
@click.option("--address", metavar="ADDRESS", help="Only this address.")
@_stream
@click.option("--reason", metavar="WORD", help=f"Only {REASONS}.")
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(1, 100_000),
    default=1000,
    show_default=True,
    help="At most so many.",
)
@common.as_json
def list_(address: str | None, stream: str | None, reason: str | None, limit: int, as_json: bool) -> None:
    """List suppressed addresses in their order."""
    if address is not None:
        from pgmail.domain.address import parse  # noqa: PLC0415

        try:
            address = parse(address).address
        except ValueError as error:
            raise Refused("invalid_address", "/address", str(error)) from None

    async def ask() -> list[Any]:
        from pgmail.store import suppressions  # noqa: PLC0415

        async with common.database() as connection:
            return await suppressions.listing(
                connection, limit=limit, address=address, stream=stream, reason=reason
            )

    output.show(common.run(ask()), _LIST, as_json=as_json, none="nobody is suppressed")


@suppression.command()
@click.argument("address")
@_stream
@click.option("--reason", default="manual", show_default=True, metavar="WORD", help=f"Why: {REASONS}.")
@click.option("--source", metavar="TEXT", help="Where it is known from, in your words.")
@click.option("--expires-at", metavar="TIME", help="When it ends by itself. Defaults to never.")
def add(address: str, stream: str | None, reason: str, source: str | None, expires_at: str | None) -> None:
    """Suppress an address: of one stream, or of all."""
    until = common.moment(expires_at, "expires_at")

    async def act() -> str:
        from pgmail.store import suppressions  # noqa: PLC0415

        async with common.database() as connection:
            return await suppressions.add(
                connection, address, reason=reason, source=source, stream=stream or "", expires_at=until
            )

    click.echo(f"suppressed {common.run(act())}")


@suppression.command()
@click.argument("address")
@_stream
@click.option("--reason", metavar="TEXT", help="Why; kept in the record.")
def remove(address: str, stream: str | None, reason: str | None) -> None:
    """Let an address have mail again."""

    async def act() -> bool:
        from pgmail.store import suppressions  # noqa: PLC0415

        async with common.database() as connection:
            return await suppressions.remove(connection, address, stream=stream or "", reason=reason)

    if not common.run(act()):
        raise PgmailError(f"{address} is not suppressed on {stream or 'all streams'}")
    click.echo(f"{address} may have mail again")
