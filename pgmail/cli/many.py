"""What commands about dead letters and mail in doubt share: pages of a list, all of one email, one choice of many.

What can go wrong: a slip that means everything. So ids, a filter and `--all` exclude each other, and none of them is
nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

from pgmail.cli import common, output
from pgmail.errors import PgmailError

F = TypeVar("F", bound=Callable[..., Any])


def paged(command: F) -> F:
    """Add the options of a list that comes in pages: --limit, --after, --json."""
    for option in (
        common.as_json,
        click.option("--after", callback=common.identifier, metavar="ID", help="Go on below this one."),
        click.option(
            "--limit",
            metavar="N",
            type=click.IntRange(1, 1000),
            default=50,
            show_default=True,
            help="How many at most.",
        ),
    ):
        command = option(command)
    return command


def show_page(
    page: tuple[Sequence[Any], bool], columns: Mapping[str, str], *, as_json: bool, none: str
) -> None:
    """Print a page of rows, and how to come to the next one."""
    rows, more = page
    output.show(rows, columns, as_json=as_json, none=none)
    if more and not as_json:
        click.echo(f"there are more: --after {rows[-1].recipient_id}")


def show_all(rows: Sequence[Any], *, as_json: bool, none: str) -> None:
    """Print rows in full. Raises PgmailError if there are none."""
    if not rows:
        raise PgmailError(none)
    if as_json:
        output.print_json([output.plain(row) for row in rows])
        return
    for number, row in enumerate(rows):
        if number:
            click.echo()
        output.show_one(row, as_json=False)


def check_choice(chosen: Mapping[str, Any], filters: Sequence[str], named: str) -> None:
    """Refuse anything but one of ids, a filter, and `--all`; `named` shows some filters."""
    narrowed = any(chosen[key] is not None for key in filters)
    if bool(chosen["ids"]) + narrowed + chosen["everything"] != 1:
        raise click.UsageError(f"Give ids, or a filter ({named}, ...), or --all.")


def filter_of(chosen: Mapping[str, Any], filters: Sequence[str]) -> dict[str, Any]:
    """Return the filter that options mean; those named `_after` and `_before` are moments."""
    return {
        name: common.past(chosen[name], name.replace("_", "-"))
        if name.endswith(("_after", "_before"))
        else chosen[name]
        for name in filters
    }


async def act_on_all(act: Callable[[], Awaitable[tuple[int, bool]]]) -> int:
    """Act, so many at a time, until nothing more is reached; how many were.

    `act` answers how many it reached, and whether there are more.
    """
    done, more = 0, True
    while more:
        reached, more = await act()
        done += reached
        more = more and reached > 0
    return done


def tell(done: str, count: int, *, as_json: bool, none: str) -> None:
    """Print how many were reached. Raises PgmailError for none."""
    if as_json:
        output.print_json({done: count})
    elif count:
        click.echo(f"{done} {count}")
    if not count:
        raise PgmailError(none)
