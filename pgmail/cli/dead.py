"""`pgmail dead`: mail that could not be sent and waits for a person.

`retry` and `discard` take ids (of recipients or emails), or a filter, or `--all`. What can go wrong: a whole
stream discarded by a slip. Discarding by filter therefore asks, or wants `--yes`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

import click

from pgmail.cli import common, many

if TYPE_CHECKING:
    from pgmail.store.emails import DeadFilter

F = TypeVar("F", bound=Callable[..., Any])
_LIST = {
    "recipient_id": "id",
    "address": "recipient",
    "stream": "stream",
    "died_at": "died",
    "reason": "reason",
    "attempts": "attempts",
    "code": "code",
    "error": "error",
    "reply": "last reply",
}
_FILTERS = ("stream", "site", "died_of", "recipient", "text", "template", "died_after", "died_before")


@click.group(short_help="Dead letters: mail that waits for a person.")
def dead() -> None:
    """See, retry and discard dead letters."""


def _filtered(command: F) -> F:
    for option in (
        click.option("--died-before", metavar="WHEN", help="Only those that died before this."),
        click.option("--died-after", metavar="WHEN", help="Only those that died at this or later."),
        click.option("--template", metavar="NAME", help="Only those of this template."),
        click.option("--text", metavar="TEXT", help="Only those with this in their error or last reply."),
        click.option("--recipient", metavar="ADDRESS", help="Only those to this address."),
        click.option("--reason", "died_of", metavar="WORD", help="Only those that died of this."),
        click.option("--site", metavar="SITE", help="Only those of this receiving site."),
        click.option("--stream", metavar="NAME", help="Only those of this stream."),
    ):
        command = option(command)
    return command


@dead.command("list")
@_filtered
@many.paged
def list_(limit: int, after: UUID | None, as_json: bool, **chosen: Any) -> None:
    """List dead letters, newest first."""

    async def ask() -> tuple[list[Any], bool]:
        from pgmail.store import emails  # noqa: PLC0415

        async with common.database() as connection:
            return await emails.dead_letters(
                connection, _filter(chosen), emails.Page(limit=limit, after=after)
            )

    many.show_page(common.run(ask()), _LIST, as_json=as_json, none="no dead letters")


@dead.command()
@common.email_id
@common.as_json
def show(id: UUID, as_json: bool) -> None:
    """Show one dead letter (or all of one email) in full."""

    async def ask() -> list[dict[str, Any]]:
        from pgmail.sqlfiles import queries  # noqa: PLC0415
        from pgmail.store.single import fetch_dicts  # noqa: PLC0415

        async with common.database() as connection:
            return await fetch_dicts(connection, queries("cli_operate")["dead_letter"], {"id": id})

    many.show_all(common.run(ask()), as_json=as_json, none=f"no dead letter has the id {id}")


def _acting(command: F) -> F:
    for option in (
        common.as_json,
        click.option("--why", metavar="TEXT", help="Why; kept in the record."),
        click.option("--all", "everything", is_flag=True, help="All of them."),
        _filtered,
        click.argument("ids", nargs=-1, callback=common.identifier, metavar="[ID]..."),
    ):
        command = option(command)
    return command


@dead.command()
@_acting
def retry(why: str | None, as_json: bool, **chosen: Any) -> None:
    """Put dead letters back into the queue: by id, by filter, or --all."""
    _tell("retried", common.run(_act("retry", why, chosen)), as_json=as_json)


@dead.command()
@_acting
@click.option("--yes", is_flag=True, help="Do not ask.")
def discard(why: str | None, as_json: bool, yes: bool, **chosen: Any) -> None:
    """Give dead letters up, which ends them as cancelled: by id, by filter, or --all."""
    _check_choice(chosen)
    if not chosen["ids"] and not yes:
        common.confirm("Discard all dead letters that match?")
    _tell("discarded", common.run(_act("discard", why, chosen)), as_json=as_json)


async def _act(verb: str, why: str | None, chosen: dict[str, Any]) -> int:
    from pgmail.store import emails  # noqa: PLC0415

    _check_choice(chosen)
    act = emails.retry if verb == "retry" else emails.discard
    wanted = chosen["ids"] or _filter(chosen)
    async with common.database() as connection:

        async def some() -> tuple[int, bool]:
            ids, more = await emails.dead_ids(connection, wanted)
            return await act(connection, ids, why) if ids else 0, more

        return await many.act_on_all(some)


def _check_choice(chosen: dict[str, Any]) -> None:
    many.check_choice(chosen, _FILTERS, "--stream, --site, --text")


def _filter(chosen: dict[str, Any]) -> DeadFilter:
    from pgmail.store.emails import DeadFilter  # noqa: PLC0415

    given = many.filter_of(chosen, _FILTERS)
    return DeadFilter(reason=given.pop("died_of"), **given)


def _tell(done: str, count: int, *, as_json: bool) -> None:
    many.tell(done, count, as_json=as_json, none="no dead letter matches")
