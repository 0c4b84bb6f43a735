"""`pgmail doubt`: mail that may have been sent, held until a person decides (streams with `on_doubt = hold`).

`resolve` takes ids (of recipients or emails), or a filter, or `--all`. What can go wrong: a slip that sends all of
it twice, or drops it. Resolving without ids therefore asks, or wants `--yes`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

import click

from pgmail.cli import common, many

if TYPE_CHECKING:
    from pgmail.store.doubts import DoubtFilter

F = TypeVar("F", bound=Callable[..., Any])
_LIST = {
    "recipient_id": "id",
    "address": "recipient",
    "stream": "stream",
    "since": "since",
    "relay": "relay",
    "worker": "worker",
    "attempt": "attempt",
    "reason": "reason",
}
_FILTERS = ("stream", "site", "relay", "worker", "recipient", "doubted_after", "doubted_before")


@click.group(short_help="Mail in doubt: it may have been sent, and a person decides.")
def doubt() -> None:
    """See and resolve mail that is held in doubt."""


def _filtered(command: F) -> F:
    for option in (
        click.option("--doubted-before", metavar="WHEN", help="Only what came to be in doubt before this."),
        click.option(
            "--doubted-after", metavar="WHEN", help="Only what came to be in doubt at this or later."
        ),
        click.option("--recipient", metavar="ADDRESS", help="Only mail to this address."),
        click.option("--worker", type=click.IntRange(1), metavar="N", help="Only what this worker left."),
        click.option("--relay", metavar="NAME", help="Only what this relay may have taken."),
        click.option("--site", metavar="SITE", help="Only mail to this receiving site."),
        click.option("--stream", metavar="NAME", help="Only mail of this stream."),
    ):
        command = option(command)
    return command


@doubt.command("list")
@_filtered
@many.paged
def list_(limit: int, after: UUID | None, as_json: bool, **chosen: Any) -> None:
    """List mail that is held in doubt, newest first."""

    async def ask() -> tuple[list[Any], bool]:
        from pgmail.store import doubts, emails  # noqa: PLC0415

        async with common.database() as connection:
            return await doubts.listing(connection, _filter(chosen), emails.Page(limit=limit, after=after))

    many.show_page(common.run(ask()), _LIST, as_json=as_json, none="nothing is in doubt")


@doubt.command()
@common.email_id
@common.as_json
def show(id: UUID, as_json: bool) -> None:
    """Show one mail in doubt (or all recipients of one email) in full."""

    async def ask() -> list[Any]:
        from pgmail.store import doubts  # noqa: PLC0415

        async with common.database() as connection:
            return await doubts.show(connection, id)

    many.show_all(common.run(ask()), as_json=as_json, none=f"no mail with the id {id} is held in doubt")


@doubt.command()
@click.argument("ids", nargs=-1, callback=common.identifier, metavar="[ID]...")
@click.option(
    "--assume-sent", "how", flag_value="assume_sent", help="It was sent: it counts as sent from now on."
)
@click.option("--resend", "how", flag_value="resend", help="It was not: send it, under the same Message-ID.")
@_filtered
@click.option("--all", "everything", is_flag=True, help="All of it.")
@click.option("--reason", metavar="TEXT", help="Why; kept in the record.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@common.as_json
def resolve(how: str | None, reason: str | None, yes: bool, as_json: bool, **chosen: Any) -> None:
    """Say what became of mail in doubt: by id, by filter, or --all. Look at the other side's log first."""
    if how is None:
        raise click.UsageError("Say --assume-sent or --resend.")
    many.check_choice(chosen, _FILTERS, "--stream, --site")
    if not chosen["ids"] and not yes:
        words = "Take for sent" if how == "assume_sent" else "Send again"
        common.confirm(f"{words} all mail in doubt that matches?")

    async def act() -> int:
        from pgmail.store import doubts  # noqa: PLC0415

        wanted = chosen["ids"] or _filter(chosen)
        async with common.database() as connection:
            return await many.act_on_all(lambda: doubts.resolve(connection, how, wanted, reason))  # type: ignore[arg-type]  # a flag's value

    many.tell("resolved", common.run(act()), as_json=as_json, none="nothing in doubt matches")


def _filter(chosen: dict[str, Any]) -> DoubtFilter:
    from pgmail.store.doubts import DoubtFilter  # noqa: PLC0415

    return DoubtFilter(**many.filter_of(chosen, _FILTERS))
