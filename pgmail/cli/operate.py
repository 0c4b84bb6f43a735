"""`pgmail queue`, `pause` and `resume`: what waits, and the relay that it waits for.

What can go wrong: a pause that everybody forgot. `doctor` and `queue` both show who paused what, since when
and why; `--until` ends a pause by itself.
"""

from __future__ import annotations

from typing import Any

import click

from pgmail.cli import common, output

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
}
_relay = click.option("--relay", required=True, metavar="NAME", help="The relay; `pgmail queue` lists them.")


@click.command(short_help="What waits, by stream and receiving site.")
@common.as_json
def queue(as_json: bool) -> None:
    """Show what waits, by stream, priority and receiving site, and the relays that do not take mail now."""

    async def ask() -> tuple[list[Any], list[dict[str, Any]]]:
        from pgmail.sqlfiles import queries  # noqa: PLC0415
        from pgmail.store import emails  # noqa: PLC0415
        from pgmail.store.single import fetch_dicts  # noqa: PLC0415

        async with common.database() as connection:
            lanes = await emails.queue(connection)
            return lanes, await fetch_dicts(connection, queries("cli_operate")["relays"])

    lanes, relays = common.run(ask())
    if as_json:
        output.print_json(
            {"lanes": [output.plain(row) for row in lanes], "relays": [output.plain(row) for row in relays]}
        )
        return
    output.show(lanes, _LANES, as_json=False, none="nothing waits")
    for relay in relays:
        if relay["state"] != "up":
            until = f" until {output.cell(relay['blocked_until'])}" if relay["blocked_until"] else ""
            click.echo(
                f"relay {relay['name']} is {relay['state']}{until}, by {relay['changed_by']} since "
                f"{output.cell(relay['changed_at'])}: {relay['reason'] or 'no reason given'}"
            )


@click.command(short_help="Stop mail to a relay.")
@_relay
@click.option("--reason", required=True, metavar="TEXT", help="Why; shown to whoever asks what waits.")
@click.option(
    "--until", metavar="TIME", help="When it ends by itself. Defaults to never: `pgmail resume` does."
)
def pause(relay: str, reason: str, until: str | None) -> None:
    """Stop mail to a relay. Mail waits meanwhile; none of it fails for that."""
    at = common.moment(until, "until")
    _act("pause_relay", {"name": relay, "reason": reason, "until": at})
    ends = f" until {output.cell(at)}" if at else ""
    click.echo(f"relay {relay} is paused{ends}")


@click.command(short_help="Let mail flow to a relay again.")
@_relay
@click.option("--reason", metavar="TEXT", help="Why; kept in the record.")
def resume(relay: str, reason: str | None) -> None:
    """Let mail flow to a relay again."""
    _act("resume_relay", {"name": relay, "reason": reason})
    click.echo(f"relay {relay} is up")


def _act(name: str, values: dict[str, object]) -> None:
    async def act() -> None:
        from pgmail.sqlfiles import queries  # noqa: PLC0415
        from pgmail.store.single import fetch_dicts  # noqa: PLC0415

        async with common.database() as connection:
            await fetch_dicts(connection, queries("cli_operate")[name], values)

    common.run(act())
