"""`pgmail webhook`: endpoints that are told of this tenant's events, and the log of what they answered.

A secret is shown once, by `add` and `rotate`. What can go wrong: an endpoint that fails. `show` says since when and
why, `deliveries` shows each call, and `replay` tells it what it missed once it is mended.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Any
from uuid import UUID

import click

from pgmail.cli import common, output
from pgmail.errors import PgmailError

_LIST = {
    "id": "id",
    "url": "endpoint",
    "types": "events",
    "streams": "streams",
    "tags": "tags",
    "enabled": "enabled",
    "waiting": "waiting",
    "failing_since": "failing since",
    "last_error": "last error",
    "reason": "why disabled",
}
_LOG = {
    "at": "at",
    "type": "event",
    "event_id": "id",
    "attempt": "attempt",
    "outcome": "outcome",
    "status": "status",
    "ms": "ms",
    "error": "error",
    "answer": "answer",
    "next_at": "again at",
}
_OUTCOMES = ("delivered", "retrying", "failed", "dropped")
TEST_SECONDS = 20.0
_ONCE = "This is the only time that the secret is shown."


@click.group(short_help="Endpoints that are told of events, and what they answered.")
def webhook() -> None:
    """Add, change, test and replay webhooks of this database role's tenant."""


def _wishes(command: Any) -> Any:
    """Add the options that say which events are wanted."""
    for option in reversed(
        (
            click.option(
                "--event",
                "events",
                multiple=True,
                metavar="TYPE",
                help="Such as email.bounced, or email.*; again for more.",
            ),
            click.option(
                "--stream", "streams", multiple=True, metavar="NAME", help="Only this stream; again for more."
            ),
            click.option(
                "--tag",
                "tags",
                multiple=True,
                type=common.Pair(),
                help="Only with this tag; again for more, all of which are needed.",
            ),
            click.option("--description", metavar="TEXT", help="For people."),
        )
    ):
        command = option(command)
    return command


def _endpoints() -> Any:
    from pgmail.domain.targets import networks_of  # noqa: PLC0415
    from pgmail.hooks.endpoints import Endpoints  # noqa: PLC0415
    from pgmail.sealing import keks  # noqa: PLC0415

    found = common.settings()
    return Endpoints(keks.read(found), networks_of(found.hook_networks))


@webhook.command()
@click.argument("url")
@_wishes
@click.option(
    "--secret", metavar="WHSEC", help="One to take over from elsewhere; else a new one is made and printed."
)
@common.as_json
def add(
    *,
    url: str,
    events: tuple[str, ...],
    streams: tuple[str, ...],
    tags: tuple[tuple[str, str], ...],
    description: str | None,
    secret: str | None,
    as_json: bool,
) -> None:
    """Add an endpoint at URL, and print its secret: this once. Without --event it is told of all."""

    async def act() -> tuple[UUID, str]:
        from pgmail.store.hooks import NewHook  # noqa: PLC0415

        endpoints = _endpoints()
        new = NewHook(
            url=url,
            types=list(events) or ["email.*"],
            streams=list(streams) or None,
            tags=dict(tags) or None,
            description=description,
        )
        async with common.database() as connection:
            made: tuple[UUID, str] = await endpoints.add(connection, new, secret)
            return made

    id_, shown = common.run(act())
    if as_json:
        output.print_json({"id": id_, "signing_secret": shown})
        return
    click.echo(f"{id_}\n{shown}")
    click.echo(f"{_ONCE} Now: pgmail webhook test {id_}", err=True)


@webhook.command("list")
@common.as_json
def list_(as_json: bool) -> None:
    """List endpoints, oldest first: how each does, and how much waits for it (counted to 10,000)."""
    rows = common.run(_ask())
    output.show(
        rows, _LIST, as_json=as_json, none="no webhooks; add one with `pgmail webhook add https://...`"
    )


@webhook.command()
@common.email_id
@common.as_json
def show(id: UUID, as_json: bool) -> None:
    """Show the endpoint ID."""
    (row,) = common.run(_ask(id))
    output.show_one(row, as_json=as_json)


async def _ask(id: UUID | None = None) -> list[Any]:
    from pgmail.store import hooks  # noqa: PLC0415

    async with common.database() as connection:
        return [await hooks.get(connection, id)] if id else await hooks.listing(connection)


@webhook.command("set")
@common.email_id
@click.option("--url", metavar="URL", help="Where it is from now on.")
@_wishes
@click.option("--all-streams", is_flag=True, help="Whatever the stream.")
@click.option("--all-tags", is_flag=True, help="Whatever the tags.")
@click.option("--enable/--disable", "enabled", default=None, help="Call it (again), or not.")
@click.option("--reason", metavar="TEXT", help="Why; kept in the record.")
def set_(
    *,
    id: UUID,
    url: str | None,
    events: tuple[str, ...],
    streams: tuple[str, ...],
    tags: tuple[tuple[str, str], ...],
    description: str | None,
    all_streams: bool,
    all_tags: bool,
    enabled: bool | None,
    reason: str | None,
) -> None:
    """Change the endpoint ID; what is not named stays."""
    given: dict[str, Any] = {
        "endpoint": url,
        "events": list(events) or None,
        "streams": list(streams) or None,
        "tags": dict(tags) or None,
        "description": description,
        "status": None if enabled is None else "enabled" if enabled else "disabled",
    }
    changes = {name: value for name, value in given.items() if value is not None}
    changes |= ({"streams": None} if all_streams else {}) | ({"tags": None} if all_tags else {})
    if not changes:
        raise click.UsageError("say what is to change")

    async def act() -> None:
        endpoints = _endpoints()
        async with common.database() as connection:
            await endpoints.change(connection, id, changes, reason)

    common.run(act())
    click.echo(f"changed {id}")


@webhook.command()
@common.email_id
@click.option("--reason", metavar="TEXT", help="Why; kept in the record.")
def remove(id: UUID, reason: str | None) -> None:
    """Take the endpoint ID away, with what waits for it and its log."""

    async def act() -> None:
        from pgmail.store import hooks  # noqa: PLC0415

        async with common.database() as connection:
            await hooks.remove(connection, id, reason)

    common.run(act())
    click.echo(f"removed {id}")


@webhook.command()
@common.email_id
@click.option(
    "--overlap",
    default="24h",
    show_default=True,
    callback=common.span,
    metavar="SPAN",
    help="How long the old secret signs too; 0s ends it now.",
)
@click.option("--secret", metavar="WHSEC", help="One to take over; else a new one is made and printed.")
@click.option("--reason", metavar="TEXT", help="Why; kept in the record.")
@common.as_json
def rotate(id: UUID, *, overlap: Any, secret: str | None, reason: str | None, as_json: bool) -> None:
    """Give the endpoint ID another secret, and print it: this once. Both sign until the overlap has passed."""

    async def act() -> tuple[str, Any]:
        endpoints = _endpoints()
        async with common.database() as connection:
            done: tuple[str, Any] = await endpoints.rotate(
                connection, id, overlap.total_seconds(), secret=secret, reason=reason
            )
            return done

    shown, ends = common.run(act())
    if as_json:
        output.print_json({"id": id, "signing_secret": shown, "replaced_expires_at": ends})
        return
    click.echo(shown)
    click.echo(f"{_ONCE} The old one signs too until {output.cell(ends)}.", err=True)


@webhook.command()
@common.email_id
@common.as_json
def test(id: UUID, as_json: bool) -> None:
    """Send the endpoint ID a sample event, and wait for what it answers; exit code 1 unless that was a 2xx."""

    async def act() -> Any:
        import asyncio  # noqa: PLC0415

        from pgmail.store import hooks  # noqa: PLC0415

        async with common.database() as connection:
            event = await hooks.test(connection, id)
            until = time.monotonic() + TEST_SECONDS
            while time.monotonic() < until:
                rows = await hooks.attempts(connection, id, hooks.AttemptFilter(event=event), limit=1)
                if rows:
                    return rows[0]
                await asyncio.sleep(0.1)
        return None

    row = common.run(act())
    if row is None:
        raise PgmailError(
            f"nobody has called it within {TEST_SECONDS:g} s: is a worker running, with PGMAIL_SEAL_KEYS?"
        )
    output.show_one(row, as_json=as_json, leave_out=("email_id", "recipient_id", "next_at"))
    if row.outcome != "delivered":
        raise PgmailError(f"it was not delivered: {row.error or f'HTTP {row.status}'}")


@webhook.command()
@common.email_id
@click.option(
    "--event", callback=common.identifier, metavar="ID", help="Only of this event (its webhook-id)."
)
@click.option("--type", "type_", metavar="TYPE", help="Only of this type of event.")
@click.option("--outcome", type=click.Choice(_OUTCOMES), help="Only with this outcome.")
@click.option("--since", metavar="WHEN", help="Calls from then on.")
@click.option("--until", metavar="WHEN", help="Calls before then.")
@click.option(
    "--limit", metavar="N", default=50, show_default=True, type=click.IntRange(1, 1_000), help="How many."
)
@common.as_json
def deliveries(
    id: UUID,
    *,
    event: UUID | None,
    type_: str | None,
    outcome: str | None,
    since: str | None,
    until: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """List calls to the endpoint ID, newest first: status, milliseconds, what went wrong, when it comes again."""

    async def ask() -> list[Any]:
        from pgmail.store import hooks  # noqa: PLC0415

        filter_ = hooks.AttemptFilter(
            event=event,
            type=type_,
            outcome=outcome,
            since=common.past(since, "since"),
            until=common.past(until, "until"),
        )
        async with common.database() as connection:
            await hooks.get(connection, id)
            return await hooks.attempts(connection, id, filter_, limit=limit)

    output.show(common.run(ask()), _LOG, as_json=as_json, none="no calls")


@webhook.command()
@common.email_id
@click.option("--since", metavar="WHEN", help="Events from then on.")
@click.option("--until", metavar="WHEN", help="Events before then.")
@click.option("--type", "type_", metavar="TYPE", help="Only of this type.")
@click.option(
    "--outcome",
    type=click.Choice(("failed", "delivered", "all")),
    default="failed",
    show_default=True,
    help="failed: given up, and not delivered later.",
)
@click.option("--event", callback=common.identifier, metavar="ID", help="Only this one (its webhook-id).")
@click.option("--reason", metavar="TEXT", help="Why; kept in the record.")
@click.option("--dry-run", is_flag=True, help="Count only; tell nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@common.as_json
def replay(
    id: UUID,
    *,
    dry_run: bool,
    yes: bool,
    since: str | None,
    until: str | None,
    type_: str | None,
    outcome: str,
    event: UUID | None,
    reason: str | None,
    as_json: bool,
) -> None:
    """Tell the endpoint ID events of its log once more, under the same ids; says how many, and asks."""
    at = common.past(since, "since"), common.past(until, "until")
    given = {
        "since": at[0] and at[0].isoformat(),
        "until": at[1] and at[1].isoformat(),
        "type": type_,
        "outcome": outcome,
        "event": event and str(event),
    }
    filter_ = {name: value for name, value in given.items() if value}
    if dry_run or not yes:
        count, complete = common.run(_count(id, filter_))
        events = f"{'' if complete else 'at least '}{count:,} event{'' if count == 1 else 's'}"
        if dry_run:
            if as_json:
                output.print_json({"id": id, "replayed": count, "dry_run": True, "complete": complete})
            else:
                click.echo(f"{events} would be told once more")
            return
        if count or not complete:
            common.confirm(f"Tell {events} once more?")
    done = common.run(_replay(id, filter_, reason))
    if as_json:
        output.print_json({"id": id, "replayed": done, "dry_run": False, "complete": True})
    else:
        click.echo(f"{done} events will be told once more")


async def _count(id: UUID, filter_: dict[str, str]) -> tuple[int, bool]:
    from pgmail.store import hooks  # noqa: PLC0415

    async with common.database() as connection:
        return await hooks.count_replay(connection, id, filter_)


async def _replay(id: UUID, filter_: dict[str, str], reason: str | None) -> int:
    from pgmail.hooks import endpoints  # noqa: PLC0415

    async with common.database() as connection:
        return await endpoints.replay(lambda: nullcontext(connection), id, filter_, reason)
