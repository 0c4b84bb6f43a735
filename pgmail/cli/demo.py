"""`pgmail demo`: the whole system on this machine, with sample mail that goes nowhere."""

from __future__ import annotations

import click

from pgmail.cli import common
from pgmail.cli.parts import part


@click.command(short_help="Try it: everything on this machine, with sample mail.")
@click.option(
    "--messages",
    type=click.IntRange(1, 1_000_000),
    default=1000,
    show_default=True,
    metavar="N",
    help="Emails to send.",
)
@click.option(
    "--processes",
    type=click.IntRange(1, 64),
    default=2,
    show_default=True,
    metavar="P",
    help="Worker processes.",
)
@click.option(
    "--keep", is_flag=True, help="Leave it running until Ctrl-C, with the dashboard and an inbox page."
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON, on the last line.")
@click.pass_context
def demo(ctx: click.Context, /, **options: object) -> None:
    """Send sample mail through all four ways in, to a server that delivers to nobody, and account for it.

    It brings a PostgreSQL of its own; with PGMAIL_DATABASE_URL it makes a database of its own on that server,
    and drops it. Exit code 0 only if every recipient is accounted for.
    """
    ctx.exit(part("run_demo")(common.settings(), **options))
