"""`pgmail retention`: for how long settled mail is kept, and how far dropping it has come.

What can go wrong: a shorter time than meant. What is past it goes within the hour and does not come back, so
`set` says what it will do and asks first.
"""

from __future__ import annotations

from typing import Any

import click

from pgmail.cli import common, output


@click.group(short_help="How long settled mail is kept.")
def retention() -> None:
    """Show and set for how long settled mail is kept, for the whole fleet."""


@retention.command()
@common.as_json
def show(as_json: bool) -> None:
    """Show what is set, the oldest week that is kept, and what should have gone and has not."""

    async def ask() -> Any:
        from pgmail.store import retention as store  # noqa: PLC0415

        async with common.database() as connection:
            return await store.show(connection)

    output.show_one(common.run(ask()), as_json=as_json)


@retention.command("set")
@click.option("--content-days", metavar="N", help="Texts, files and tags; or none: for ever.")
@click.option("--record-days", metavar="N", help="Recipients, outcomes and events; or none: for ever.")
@click.option("--reason", metavar="TEXT", help="Why; kept in the record.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def set_(content_days: str | None, record_days: str | None, reason: str | None, yes: bool) -> None:
    """Set for how long mail is kept once it is settled; what is not given stays. Older mail goes within the hour."""
    if content_days is None and record_days is None:
        raise click.UsageError("give --content-days, --record-days or both")

    async def act() -> tuple[int | None, int | None]:
        from pgmail.store import retention as store  # noqa: PLC0415

        async with common.database() as connection:
            now = await store.show(connection)
            content = now.content_days if content_days is None else _days(content_days, "--content-days")
            record = now.record_days if record_days is None else _days(record_days, "--record-days")
            if not yes and (_sooner(content, now.content_days) or _sooner(record, now.record_days)):
                common.confirm("Settled mail that is older will be dropped for good. Go on?")
            await store.change(connection, content, record, reason=reason)
            return content, record

    content, record = common.run(act())
    click.echo(f"content is kept {_words(content)}, the record {_words(record)}")


def _days(text: str, option: str) -> int | None:
    return common.whole_or_none(text, option, "a number of days")


def _sooner(new: int | None, old: int | None) -> bool:
    return new is not None and (old is None or new < old)


def _words(days: int | None) -> str:
    return "for ever" if days is None else f"{days} days"
