"""`pgmail send --csv FILE`: a mailing from a list, with an email of its own for everybody on it.

The options and the order of things are here; what a mailing is stands in pgmail/mailing and
ops/docs/mailings.md. What can go wrong is refused before the first row is sent where that can be known, and
otherwise at its row; an interrupted run is told how to go on.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from pgmail.cli import common, output
from pgmail.errors import PgmailError, Refused

if TYPE_CHECKING:
    from pgmail.cli.send_csv_show import Reporter
    from pgmail.mailing.scan import Scan
    from pgmail.mailing.send import Handed
    from pgmail.mailing.work import Mailing, Order

F = TypeVar("F", bound=Callable[..., Any])
OPTIONS = (
    "mailing",
    "column_address",
    "delimiter",
    "typed",
    "keep_empty",
    "chunk",
    "rejected",
    "state",
    "in_doubt",
    "dry_run",
)
"""The options that only a mailing has, by the names of their values."""

_UNSHARED = ("to", "cc", "bcc", "mode", "idempotency_key")  # that a list brings, or rules out
_FILE = click.Path(dir_okay=False, path_type=Path)


def options(command: F) -> F:
    """Add the options of a mailing to a command."""
    for option in reversed(
        (
            click.option(
                "--csv", type=_FILE, metavar="FILE", help="A mailing: one email for each row of FILE."
            ),
            click.option("--mailing", metavar="NAME", help="Name of the mailing: another one is sent anew."),
            click.option("--column-address", metavar="NAME", help="Column with the addresses."),
            click.option(
                "--delimiter", metavar="CHAR", help="Between cells: , ; or tab. Told by the header."
            ),
            click.option(
                "--typed", is_flag=True, help="Cells that are JSON (12, true, [1]) are such values."
            ),
            click.option(
                "--keep-empty", is_flag=True, help="An empty cell is an empty text, not no variable."
            ),
            click.option("--chunk", type=click.IntRange(1, 1_000), metavar="N", help="Rows a transaction."),
            click.option(
                "--rejected", type=_FILE, metavar="FILE", help="Write refused rows there, with reasons."
            ),
            click.option(
                "--state", type=_FILE, metavar="FILE", help="What was sent. Defaults to beside the list."
            ),
            click.option(
                "--in-doubt",
                type=click.Choice(["skip", "send"]),
                help="What to do with a chunk of which nobody knows whether it was sent.",
            ),
            click.option("--dry-run", is_flag=True, help="Check the email and every row, and send nothing."),
        )
    ):
        command = option(command)
    return command


def run(path: Path, given: dict[str, Any], body: dict[str, Any], *, as_json: bool) -> None:
    """Send a mailing; `given` are the options by name, `body` is the email that they make."""
    if wrong := sorted(key for key in _UNSHARED if key in body):
        because = "the list names who gets it; leave out " + ", ".join(
            f"--{key.replace('_', '-')}" for key in wrong
        )
        raise click.UsageError(because)
    rejected = given["rejected"]
    for name, other in (("--rejected", rejected), ("--state", given["state"])):
        if other is not None and other.absolute() == path.absolute():
            raise click.BadParameter("that is the list itself", param_hint=name)
    from pgmail.cli.send_csv_show import Reporter  # noqa: PLC0415 - only a mailing needs it
    from pgmail.mailing.work import Mailing  # noqa: PLC0415

    order = _order(path, given, body)
    found = common.settings()  # wrong ones are told before the list is looked at
    address, sealer = common.address(found), common.sealer(found)
    with Reporter(path, rejected) as reporter:
        with Mailing(order, connect=lambda: _lend(address), watch=reporter, sealer=sealer) as mailing:
            _work(order, mailing, reporter, dry=given["dry_run"])
        reporter.end()
        _tell(order, mailing, dry=given["dry_run"], as_json=as_json)


def _lend(address: str) -> Any:
    from pgmail.store.single import lend  # noqa: PLC0415

    return lend(address, name="pgmail mailing")


def _order(path: Path, given: dict[str, Any], body: dict[str, Any]) -> Order:
    from pgmail.mailing.work import CHUNK, Order  # noqa: PLC0415

    delimiter = given["delimiter"]
    if delimiter is not None:
        delimiter = {"tab": "\t", "\\t": "\t"}.get(delimiter, delimiter)
        if len(delimiter) != 1 or delimiter in '"\r\n':
            raise click.BadParameter("one character, or tab", param_hint="--delimiter")
    doubtful: Literal["skip", "send"] | None = given["in_doubt"]
    return Order(
        path=path,
        body=body,
        name=given["mailing"],
        chunk=given["chunk"] or CHUNK,
        delimiter=delimiter,
        address_column=given["column_address"],
        typed=given["typed"],
        keep_empty=given["keep_empty"],
        state=given["state"],
        doubtful=doubtful,
    )


def _work(order: Order, mailing: Mailing, reporter: Reporter, *, dry: bool) -> None:
    """Ask, look and send. An end in the middle says how to go on."""
    common.run(mailing.ask())
    if not dry:
        mailing.open_state()
    reporter.begin(mailing.table, order.name)  # not before: another run may be writing its refused rows
    found = mailing.scan()
    reporter.scanned(found)
    if dry:
        return
    try:
        common.run(mailing.send())
    except KeyboardInterrupt:
        reporter.say(f"interrupted; {_so_far(mailing.handed)}")
        raise
    except Refused as refused:
        because = f"{refused.message}; {_so_far(mailing.handed)}"
        raise Refused(refused.code, refused.field, because, refused.status) from refused
    except PgmailError as error:
        raise PgmailError(f"{error}; {_so_far(mailing.handed)}") from error


def _so_far(handed: Handed) -> str:
    done = handed.enqueued + handed.already
    return f"{done:,} emails were handed over, and the same command goes on from there"


def _tell(order: Order, mailing: Mailing, *, dry: bool, as_json: bool) -> None:
    """Print how it went. Rows that were not sent, and should have been, make it exit code 1."""
    found, handed = mailing.found, mailing.handed
    refused = found.refused + handed.refused
    if as_json:
        output.print_json(
            {
                "mailing": order.name,
                "dry_run": dry,
                "rows": found.rows,
                "enqueued": handed.enqueued,
                "already": handed.already,
                "refused": refused,
                "duplicates": found.duplicates,
                "conflicts": handed.conflicts,
                "skipped": handed.skipped,
                "emails": handed.emails,
            }
        )
    else:
        click.echo(_summary(found, handed, dry=dry))
    left = handed.conflicts + handed.skipped
    if refused or left:
        rows = f"{refused:,} of {found.rows:,} rows were refused" if refused else ""
        alone = f"{left:,} were left alone, since they may have it already" if left else ""
        raise PgmailError(" and ".join(filter(None, (rows, alone))))


def _summary(found: Scan, handed: Handed, *, dry: bool) -> str:
    parts = []
    if dry:
        good = found.rows - found.refused - found.duplicates
        parts.append(f"{good:,} of {found.rows:,} rows can be sent; nothing was")
    else:
        parts.append(f"{handed.enqueued:,} of {found.rows:,} rows are handed over")
        if handed.already:
            parts.append(f"{handed.already:,} were before (--mailing NAME sends to everybody again)")
    if found.duplicates:
        parts.append(f"{found.duplicates:,} repeat an address")
    return "; ".join(parts)
