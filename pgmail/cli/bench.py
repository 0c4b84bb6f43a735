"""`pgmail bench NAME`: how fast it is on this machine, with the conditions beside the figures."""

from __future__ import annotations

from pathlib import Path

import click

from pgmail.cli import common, output, parts

NAMES = ("e2e", "enqueue")


@click.command(short_help="Measure this machine.")
@click.argument("name", type=click.Choice(NAMES))
@click.option("--mails", type=click.IntRange(1), help="How many, for e2e; 20,000 by default.")
@click.option("--processes", type=click.IntRange(1, 64), help="Worker processes, for e2e; 2 by default.")
@click.option("--seconds", type=click.IntRange(1, 600), help="Each figure of enqueue; 5 by default.")
@common.as_json
def bench(name: str, mails: int | None, processes: int | None, seconds: int | None, as_json: bool) -> None:
    r"""Measure on an embedded PostgreSQL of its own; touches no mail of yours.

    \b
    e2e      mails a second from queue to sink: claim, render 4 kB text and HTML, send, settle
    enqueue  SQL send from 1 and 16 clients, and send_many of 1,000
    """
    given = {"mails": mails, "processes": processes, "seconds": seconds}
    options = {key: value for key, value in given.items() if value is not None}
    allowed = {"e2e": {"mails", "processes"}, "enqueue": {"seconds"}}[name]
    if wrong := sorted(options.keys() - allowed):
        raise click.UsageError(f"--{wrong[0]} is not for {name}")
    folder = Path(common.settings().data_folder).absolute() / "bench"
    figures = parts.part("run_bench")(name, folder, options)
    output.show_one(figures, as_json=as_json)
