"""`pgmail queue`, `pause` and `resume`: what waits, what it waits for, and what an operator stopped.

What can go wrong: a pause that everybody forgot. `queue` shows all that hold, with who paused what, since when
and why; `--until` ends one by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from pgmail.cli import common, output, restore

_LANES = {
    "stream": "stream",
    "priority": "priority",
    "site": "site",
    "depth": "recipients",
    "queued": "queued",
    "scheduled": "scheduled",
    "deferred": "deferred",
    "held": "held",
    "sending": "sending",
    "oldest_due_at": "oldest due",
    "waits_for": "waits for",
}
F = TypeVar("F", bound=Callable[..., Any])


def _target(command: F) -> F:
    """Give a command the options that say what is meant."""
    for option in (
        click.option("--fleet", is_flag=True, help="Of all tenants, not only of this role's."),
        click.option(
            "--relay", metavar="NAME", help="A relay, for all tenants; `pgmail config show` has them."
        ),
        click.option("--lane", metavar="LANE", help="A lane: stream/priority/site."),
        click.option("--stream", metavar="NAME", help="A stream."),
        click.option("--site", metavar="DOMAIN", help="A receiving site, such as gmail.com."),
    ):
        command = option(command)
    return command


@click.command(short_help="What waits, by stream and receiving site.")
@click.option("--stream", metavar="NAME", help="Lanes of this stream only.")
@click.option("--site", metavar="DOMAIN", help="Lanes of this receiving site only.")
@click.option(
    "--limit",
    type=click.IntRange(1, 100_000),
    default=100,
    metavar="N",
    help="How many lanes, the deepest first. Defaults to 100.",
)
@common.as_json
def queue(stream: str | None, site: str | None, limit: int, as_json: bool) -> None:
    """Show what waits and for what, by stream, priority and receiving site, and all that is paused or away."""

    async def ask() -> tuple[Any, list[dict[str, Any]], list[Any], Any | None]:
        from pgmail.sqlfiles import queries  # noqa: PLC0415
        from pgmail.store import history, insight, lanes  # noqa: PLC0415
        from pgmail.store.single import fetch_dicts  # noqa: PLC0415

        async with common.database() as connection:
            waiting = await insight.queue(
                connection, most=limit, stream=stream, site=None if site is None else site.lower()
            )
            relays = await fetch_dicts(connection, queries("cli_operate")["relays"])
            return waiting, relays, await lanes.paused(connection), await history.fence(connection)

    waiting, relays, pauses, fence = common.run(ask())
    rows = [row._replace(waits_for=row.waits_for[0] if row.waits_for else None) for row in waiting.lanes]
    if as_json:
        output.print_json(
            {
                "depth": waiting.found.depth,
                "lanes_found": waiting.lanes_found,
                "lanes": [output.plain(row) for row in rows],
                "relays": [output.plain(row) for row in relays],
                "pauses": [output.plain(row) for row in pauses],
                "restored": None if fence is None else output.plain(fence),
            }
        )
        return
    output.show(rows, _LANES, as_json=False, none="nothing waits")
    if waiting.lanes_found > len(rows):
        click.echo(
            f"the {len(rows)} deepest of {waiting.lanes_found} lanes, in which {waiting.found.depth} recipients wait; "
            "--stream, --site and --limit show others"
        )
    if fence is not None:
        click.echo(
            f"all sending is stopped since {output.cell(fence.noticed_at)}: {fence.reason}; "
            "pgmail resume --after-restore decides"
        )
    for relay in relays:
        if relay["state"] != "up":
            click.echo(
                f"relay {relay['name']} is {relay['state']}{_until(relay['blocked_until'])}, by {relay['changed_by']} "
                f"since {output.cell(relay['changed_at'])}: {relay['reason'] or 'no reason given'}"
            )
    for row in pauses:
        whose = " for the whole fleet" if row.fleet else ""
        # By the word of the command that ends it: pgmail tenant resume, or pgmail resume.
        stopped = "suspended" if row.scope == "tenant" else "paused"
        click.echo(
            f"{row.scope} {row.name} is {stopped}{whose}{_until(row.until)}, by {row.paused_by} "
            f"since {output.cell(row.paused_at)}: {row.reason}"
        )


@click.command(short_help="Stop mail to a site or relay, of a stream or lane.")
@_target
@click.option(
    "--after-restore", is_flag=True, help="All mail, for the database was restored and nobody noticed."
)
@click.option("--reason", required=True, metavar="TEXT", help="Why; shown to whoever asks what waits.")
@click.option(
    "--until", metavar="TIME", help="When it ends by itself. Defaults to never: `pgmail resume` does."
)
def pause(fleet: bool, reason: str, until: str | None, after_restore: bool, **given: str | None) -> None:
    """Stop mail to a site or a relay, of a stream or a lane. It waits meanwhile; none of it fails for that."""
    if after_restore:
        if until or fleet or any(given.values()):
            raise click.UsageError("--after-restore stops all mail; it takes --reason only")
        restore.stop(reason)
        return
    scope, name = _one(given, fleet=fleet)
    at = common.moment(until, "until")

    async def act() -> str:
        from pgmail.store import lanes  # noqa: PLC0415

        async with common.database() as connection:
            if scope != "relay":
                return await lanes.pause(connection, scope, name, reason=reason, until=at, fleet=fleet)
            await _relay(connection, "pause_relay", {"name": name, "reason": reason, "until": at})
            return name

    click.echo(f"{scope} {common.run(act())} is paused{_until(at)}")


@click.command(short_help="Let mail flow again.")
@_target
@click.option("--reason", metavar="TEXT", help="Why; kept in the record. Required with --after-restore.")
@click.option(
    "--after-restore",
    is_flag=True,
    help="All mail, which stopped when a restored database was noticed; shows first what is in doubt.",
)
@click.option("--hold", "decision", flag_value="hold", help="Mail in doubt waits for a person. The default.")
@click.option("--resend", "decision", flag_value="resend", help="Mail in doubt is sent (again).")
@click.option("--assume-sent", "decision", flag_value="assume_sent", help="Mail in doubt counts as sent.")
@click.option(
    "--since",
    metavar="TIME",
    help="The moment of the backup. Defaults to what was noticed; later mail is new.",
)
@click.option("--dry-run", is_flag=True, help="With --after-restore: show what is in doubt, and stop.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@common.as_json
def resume(
    *,
    fleet: bool,
    reason: str | None,
    after_restore: bool,
    decision: str | None,
    since: str | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    **given: str | None,
) -> None:
    """Let mail flow again to a site or a relay, of a stream or a lane; or all of it after a restore."""
    if after_restore:
        if fleet or any(given.values()):
            raise click.UsageError("--after-restore is about all mail; leave the others out")
        restore.resume(
            decision or "hold", since=since, reason=reason, dry_run=dry_run, yes=yes, as_json=as_json
        )
        return
    if decision or since or dry_run or yes or as_json:
        raise click.UsageError("these options go with --after-restore")
    scope, name = _one(given, fleet=fleet)

    async def act() -> str:
        from pgmail.store import lanes  # noqa: PLC0415

        async with common.database() as connection:
            if scope != "relay":
                return await lanes.resume(connection, scope, name, reason=reason, fleet=fleet)
            await _relay(connection, "resume_relay", {"name": name, "reason": reason})
            return name

    ended = common.run(act())
    click.echo(f"relay {ended} is up" if scope == "relay" else f"{scope} {ended} is no longer paused")


async def _relay(connection: Any, name: str, values: dict[str, object]) -> None:
    from pgmail.sqlfiles import queries  # noqa: PLC0415
    from pgmail.store.single import fetch_dicts  # noqa: PLC0415

    await fetch_dicts(connection, queries("cli_operate")[name], values)


def _one(given: dict[str, str | None], *, fleet: bool) -> tuple[str, str]:
    """Return the one thing that is meant; wrong usage if there is none or more than one."""
    chosen = [(scope, name) for scope, name in given.items() if name is not None]
    if len(chosen) != 1:
        raise click.UsageError("give one of --site, --stream, --lane and --relay")
    if fleet and chosen[0][0] == "relay":
        raise click.UsageError("a relay is the fleet's already; leave --fleet out")
    return chosen[0]


def _until(at: Any) -> str:
    return f" until {output.cell(at)}" if at else ""
