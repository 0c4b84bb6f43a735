"""`pgmail bench NAME`: how fast it is on this machine, with the conditions beside the figures."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import click

from pgmail.cli import common, output, parts

_WORKERS = {"processes", "concurrency"}
TAKES: Mapping[str, set[str]] = {
    "e2e": {"mails", "stream"} | _WORKERS,
    "queue": {"mails", "stream"} | _WORKERS,
    "enqueue": {"seconds"},
    "api": {"seconds"},
    "priority": {"mails", "seconds"} | _WORKERS,
    "wake": {"mails"} | _WORKERS,
    "pinned": {"seconds"} | _WORKERS,
    "backlog": {"sizes", "seconds"} | _WORKERS,
    "lanes": {"sizes", "tenants", "mails", "seconds"} | _WORKERS,
}
"""The benches, and which options each has."""
_FACTORS = {"": 1, "k": 1000, "M": 1_000_000}


def _sizes(_: click.Context, __: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    """Read `10k,1M` as whole numbers."""
    if text is None:
        return None
    found = [re.fullmatch(r"([1-9][0-9]{0,8})([kM]?)", word.strip()) for word in text.split(",")]
    if not all(found):
        raise click.BadParameter("whole numbers with commas between, such as 10k,1M")
    return tuple(int(size[1]) * _FACTORS[size[2]] for size in found if size)


@click.command(short_help="Measure this machine.")
@click.argument("name", type=click.Choice(list(TAKES)))
@click.option("--mails", type=click.IntRange(1), metavar="N", help="How many mails.")
@click.option("--sizes", callback=_sizes, metavar="LIST", help="Backlogs, or numbers of lanes: 10k,1M.")
@click.option("--tenants", type=click.IntRange(1), metavar="N", help="How many tenants, for lanes.")
@click.option("--seconds", type=click.IntRange(1, 3600), metavar="S", help="How long each part takes.")
@click.option("--processes", type=click.IntRange(1, 64), metavar="P", help="Worker processes; 2 by default.")
@click.option("--concurrency", type=click.IntRange(1, 1000), metavar="N", help="Mails at a time a process.")
@click.option("--stream", metavar="NAME", help="Whose mails, for e2e and queue; transactional by default.")
@click.option("--peers", is_flag=True, help="Race other queues too: e2e, queue, enqueue and api.")
@common.as_json
def bench(*, name: str, peers: bool, as_json: bool, **given: object) -> None:
    """Measure on an embedded PostgreSQL of its own; touches no mail of yours.

    \b
    e2e       mails a second from queue to sink: claim, render 4 kB text and HTML, send, settle
    queue     the same with small mails and no SMTP, as no-op jobs of other queues
    enqueue   SQL send from 1 and 16 clients, and send_many of 1,000
    api       POST /emails from 1, 16 and 64 connections, and batches of 1,000
    priority  commit to accepted of a mail with high priority, over a backlog under full load
    wake      commit to accepted when the workers sleep
    pinned    the pace while a transaction holds a snapshot open, by the pace before
    backlog   the pace out of small and large backlogs
    lanes     the pace out of few and many lanes, and of many tenants
    """  # noqa: D301 - click keeps the lines after the octet that \b stands for
    options = {key: value for key, value in given.items() if value is not None}
    if wrong := sorted(options.keys() - TAKES[name]):
        raise click.UsageError(f"--{wrong[0]} is not for {name}")
    common.log_quietly()
    folder = Path(common.settings().data_folder).absolute() / "bench"
    figures = parts.part("run_bench")(name, folder, options, with_peers=peers)
    output.show_one(figures, as_json=as_json)
