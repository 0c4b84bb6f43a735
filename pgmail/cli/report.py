"""`pgmail report`: what became of mail, by what it is or where it goes; and what went wrong most, with examples.

Figures come from roll-ups, a few seconds late; no mail is read. What can go wrong: no process leads, and the figures
stand still. A report for people says so, and `pgmail doctor` says why.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import click
from click.core import ParameterSource

from pgmail.cli import common, output

LATE = timedelta(minutes=2)  # figures that are older are remarked
BYS = ("stream", "tag", "template", "site", "relay", "reason", "hour", "day", "tenant")
_LINES = {
    "sent": "sent",
    "bounced": "bounced",
    "hard": "hard",
    "soft": "soft",
    "block": "block",
    "deferred": "deferrals",
    "suppressed": "suppressed",
    "expired": "expired",
    "cancelled": "cancelled",
    "dead": "dead",
    "in_doubt": "in doubt",
    "sent_rate": "sent %",
    "p50_ms": "p50 ms",
    "p95_ms": "p95 ms",
}
_CAUSES = {
    "n": "times",
    "kind": "what",
    "group": "class",
    "reason": "reason",
    "code": "code",
    "text": "text",
    "last_at": "last",
    "examples": "emails",
}

_NONE = {
    name: f"no mail with a {name} came to anything in this time" for name in ("tag", "template")
}  # most mail has none


@click.command(short_help="What became of mail, by stream, site, template or time.")
@click.option(
    "--by", type=click.Choice(BYS), default="stream", show_default=True, help="A line for each of these."
)
@click.option(
    "--since",
    metavar="TIME",
    help="From then on, such as 7d or 'yesterday'. Defaults to a day before --until.",
)
@click.option("--until", metavar="TIME", help="Before then. Defaults to now.")
@click.option("--causes", is_flag=True, help="The most frequent answers that were not a 250, with examples.")
@click.option(
    "--limit", metavar="N", type=click.IntRange(1, 1000), default=50, show_default=True, help="Most lines."
)
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, all lines.")
@common.as_json
@click.pass_context
def report(
    context: click.Context,
    *,
    by: Any,
    since: str | None,
    until: str | None,
    causes: bool,
    limit: int,
    as_csv: bool,
    as_json: bool,
) -> None:
    """Tell what became of mail in a span, widened to whole hours (of long ago: days)."""
    if as_csv and (as_json or causes):
        raise click.UsageError("--csv prints a report's lines; leave --json and --causes out")
    if causes and context.get_parameter_source("by") is not ParameterSource.DEFAULT:
        raise click.UsageError("--causes are of all mail; leave --by out")
    now = common.now()
    to = common.past(until, "until") or now
    of = common.past(since, "since") or min(to, now) - timedelta(days=1)
    if of >= to:
        raise click.UsageError("--since must lie before --until")

    async def ask() -> Any:
        from pgmail.store import reports  # noqa: PLC0415

        async with common.database() as connection:
            if causes:
                return await reports.causes(connection, of, to, limit)
            return await reports.report(connection, by, of, to)

    found = common.run(ask())
    if causes:
        output.show(found, _CAUSES, as_json=as_json, none="nothing went wrong")
        return
    if as_csv:
        from pgmail.domain import csvtext  # noqa: PLC0415
        from pgmail.store.reports import Line  # noqa: PLC0415

        lines = csvtext.write((by, *Line._fields[1:]), found.lines)
        click.echo(lines, nl=False)
        return
    if as_json:
        facts = output.plain(found)
        total = None if found.total is None else output.plain(found.total)
        output.print_json(facts | {"lines": [output.plain(line) for line in found.lines], "total": total})
        return
    _show(found, by, limit)


def _show(found: Any, by: str, limit: int) -> None:
    click.echo(f"{output.cell(found.since)} to {output.cell(found.until)}")
    if not found.lines:
        click.echo(_NONE.get(by, "no mail came to anything in this time"))
        _remark(found)
        return
    shown = found.lines[:limit] if by not in {"hour", "day"} else found.lines[-limit:]
    rows = [output.plain(line) for line in shown]
    if found.total is not None and len(found.lines) > 1:
        rows.append(output.plain(found.total))
    for row in rows:
        if by == "hour":
            row["key"] = row["key"].replace("T", " ")  # as all times in tables
        row["sent_rate"] = None if row["sent_rate"] is None else f"{100 * row['sent_rate']:.1f}"
    output.table([by, *_LINES.values()], [[row["key"], *(row[key] for key in _LINES)] for row in rows])
    if len(shown) < len(found.lines):
        click.echo(f"{len(found.lines) - len(shown)} lines more; --limit or --csv shows them")
    _remark(found)


def _remark(found: Any) -> None:
    """Say where figures stand still: else what is not there looks like nothing."""
    if found.as_of is None:
        click.echo("nothing was counted yet: pgmail doctor says whether a process leads", err=True)
    elif found.as_of < min(found.until, common.now() - LATE):
        said = f"what happened since {output.cell(found.as_of)} is not counted yet: pgmail doctor says why"
        click.echo(said, err=True)
