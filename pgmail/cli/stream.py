"""`pgmail stream`: how mail of one kind is sent, retried and limited.

What can go wrong: a stream that resends in doubt where twice is worse than never. `--on-doubt hold` keeps such
mail for a person.
"""

from __future__ import annotations

from typing import Any

import click

from pgmail.cli import common, output

_LIST = {
    "name": "name",
    "priority": "priority",
    "relay": "relay",
    "on_doubt": "in doubt",
    "trace": "trace",
    "retry_base_seconds": "first retry s",
    "retry_factor": "factor",
    "retry_cap_seconds": "longest s",
    "max_attempts": "attempts",
    "max_age_seconds": "max age s",
    "max_queued": "limit",
    "keep_content_days": "content days",
    "suppress_bounced": "suppress bounced",
    "seal": "seal",
}


@click.group(short_help="Streams: how mail of one kind is sent.")
def stream() -> None:
    """List streams, and create or change one."""


@stream.command("list")
@common.as_json
def list_(as_json: bool) -> None:
    """List streams by name."""

    async def ask() -> list[Any]:
        from pgmail.store import streams  # noqa: PLC0415

        async with common.database() as connection:
            return await streams.listing(connection)

    rows = [output.plain(row) for row in common.run(ask())]
    if not as_json:
        rows = [row | {"relay": relays_text(row["relay"])} for row in rows]
    output.show(rows, _LIST, as_json=as_json)


@stream.command()
@click.argument("name")
@click.option("--priority", metavar="WORD", help="high, normal or low. Defaults to normal.")
@click.option(
    "--relay",
    metavar="NAMES",
    help="Relay that takes the mail; several in order as a,b, by weight as a=3,b=1. Defaults to default.",
)
@click.option("--on-doubt", metavar="WORD", help="resend or hold, if a reply was lost. Defaults to resend.")
@click.option(
    "--trace", metavar="WORD", help="full or lean: whether each start is recorded. Defaults to full."
)
@click.option(
    "--retry-base-seconds", metavar="S", type=float, help="Wait before the second attempt. Defaults to 30."
)
@click.option("--retry-factor", metavar="N", type=float, help="How much longer each wait is. Defaults to 3.")
@click.option("--retry-cap-seconds", metavar="S", type=float, help="Longest wait. Defaults to 14400.")
@click.option(
    "--retry-jitter",
    metavar="PART",
    type=float,
    help="Part of a wait that is chance, 0 to 1. Defaults to 0.2.",
)
@click.option(
    "--max-attempts", metavar="N", type=int, help="Attempts before it is a dead letter. Defaults to 20."
)
@click.option(
    "--max-age-seconds", metavar="S", type=int, help="Age at which it is a dead letter. Defaults to 259200."
)
@click.option(
    "--suppress-bounced/--keep-bounced",
    default=None,
    help="Whether an address that is gone for good gets no more mail. Defaults to suppress.",
)
@click.option(
    "--seal", metavar="WORD", help="Seal mail at rest: off, where_possible or required. Defaults to off."
)
@click.option("--max-queued", metavar="N", help="Most recipients that wait, or none. Defaults to none.")
@click.option(
    "--keep-content-days", metavar="N", help="Days that settled texts are kept, or none: as the fleet does."
)
def save(name: str, max_queued: str | None, keep_content_days: str | None, **given: Any) -> None:
    """Create a stream, or change what is given of one."""
    settings = {key: value for key, value in given.items() if value is not None}
    if "relay" in settings:
        settings["relay"] = relays_of(settings["relay"])
    if max_queued is not None:
        settings["max_queued"] = common.whole_or_none(max_queued, "--max-queued")
    if keep_content_days is not None:
        settings["keep_content_days"] = common.whole_or_none(keep_content_days, "--keep-content-days")

    async def act() -> None:
        from pgmail.store import streams  # noqa: PLC0415

        async with common.database() as connection:
            await streams.save(connection, name, settings)

    common.run(act())
    click.echo(f"saved {name}")


def relays_of(text: str) -> str | list[str] | list[dict[str, object]]:
    """Return the relays of `a`, `a,b` (in order) or `a=3,b=1` (by weight) as `save_stream` takes them."""
    parts = [part.strip() for part in text.split(",")]
    pairs = [part.partition("=") for part in parts]
    if not any(sign for _, sign, _ in pairs):
        return parts[0] if len(parts) == 1 else parts
    try:
        return [{"name": name.strip(), "weight": float(weight)} for name, _, weight in pairs]
    except ValueError:
        raise click.BadParameter(
            "give relays as a, as a,b in their order, or all of them with weights as a=3,b=1",
            param_hint="--relay",
        ) from None


def relays_text(relay: str | list[str] | list[dict[str, Any]]) -> str:
    """Return relays as `relays_of` reads them."""
    if isinstance(relay, str):
        return relay
    return ",".join(one if isinstance(one, str) else f"{one['name']}={one['weight']:g}" for one in relay)
