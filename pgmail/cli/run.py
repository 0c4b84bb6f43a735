"""`pgmail serve | api | worker | maintain`: the commands that go on until SIGTERM or SIGINT, and then drain.

    serve      parent -> api x PGMAIL_API_PROCESSES, worker x PGMAIL_WORKER_PROCESSES
    api        this process, or a parent with several
    worker     this process, or a parent with several
    maintain   this process: leads, and sends nothing

What can go wrong is in `pgmail.processes`: a child that crashes is started again; one that cannot start says
why in its own line and ends the tree with exit code 1.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from pgmail.cli import common
from pgmail.cli.parts import part
from pgmail.errors import SettingsError

if TYPE_CHECKING:
    from pgmail.config import Settings
    from pgmail.processes import Spec

SPARE_SECONDS = 5.0  # for a child that drained for as long as it may to say goodbye

_host = click.option("--host", "api_host", metavar="ADDRESS", help="Address to listen on.")
_port = click.option(
    "--port", "api_port", type=int, metavar="N", help="Port to listen on; 0 takes a free one."
)
_concurrency = click.option(
    "--concurrency", "worker_concurrency", type=int, metavar="N", help="Emails that a worker sends at a time."
)


@click.command(short_help="Run everything: API, workers, maintenance.")
@_host
@_port
@click.option("--processes", "worker_processes", type=int, metavar="N", help="Worker processes.")
@_concurrency
@click.pass_context
def serve(ctx: click.Context, /, **options: Any) -> None:
    """Run the API and the workers in one process tree; any worker can lead. Defaults come from the settings."""
    found = _begin(options)
    for role in ("api", "worker"):
        found.database(role)  # a missing address is one line here, not one from each child
    part("check_relay")(found)
    ctx.exit(_tree(found, [_api_spec(found), _worker_spec(found)], options))


@click.command(short_help="Run the HTTP API.")
@_host
@_port
@click.option("--processes", "api_processes", type=int, metavar="N", help="API processes.")
@click.pass_context
def api(ctx: click.Context, /, **options: Any) -> None:
    """Run the HTTP API. Defaults come from the settings."""
    found = _begin(options)
    if found.api_processes > 1 and not _is_child():
        ctx.exit(_tree(found, [_api_spec(found)], options))
    _join_parent(found)
    part("run_api")(found)


@click.command(short_help="Run workers, which send the mail.")
@click.option("--processes", "worker_processes", type=int, metavar="N", help="Worker processes.")
@_concurrency
@click.pass_context
def worker(ctx: click.Context, /, **options: Any) -> None:
    """Run workers. Any of them can lead, so workers alone keep schedules and rescue running."""
    found = _begin(options)
    if found.worker_processes > 1 and not _is_child():
        part("check_relay")(found)
        ctx.exit(part("run_workers")(found, found.worker_processes, found.worker_concurrency))
    ctx.exit(part("run_worker")(found))


@click.command(short_help="Run a process that only leads.")
@click.pass_context
def maintain(ctx: click.Context) -> None:
    """Run a process that only leads: rescue, repair, expiry, partitions. It sends nothing."""
    found = _begin({})
    _join_parent(found)
    ctx.exit(part("run_maintain")(found))


def _begin(options: Mapping[str, object]) -> Settings:
    """Read the settings and set up logging, before the first line."""
    from pgmail import log  # noqa: PLC0415

    found = common.settings(options)
    log.configure(found.log_level, found.log_format)  # type: ignore[arg-type]  # checked as read
    return found


def _is_child() -> bool:
    from pgmail.processes import LIFELINE  # noqa: PLC0415

    return LIFELINE in os.environ


def _join_parent(found: Settings) -> None:
    from pgmail.processes import die_with_parent  # noqa: PLC0415

    die_with_parent(seconds=found.drain_seconds + SPARE_SECONDS)


def _tree(found: Settings, specs: list[Spec], options: Mapping[str, object]) -> int:
    import structlog  # noqa: PLC0415

    from pgmail.processes import ProcessTree  # noqa: PLC0415

    log = structlog.get_logger()
    log.info("serving", processes={spec.name: spec.count for spec in specs}, options=_given(options))

    def note(word: str, facts: Mapping[str, object]) -> None:
        level = log.info if word == "started" else log.warning
        level(f"process.{word}", **facts)

    return ProcessTree(specs, drain_seconds=found.drain_seconds + SPARE_SECONDS, note=note).run()


def _given(options: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in options.items() if value is not None}


def _api_spec(found: Settings) -> Spec:
    from pgmail.processes import Spec  # noqa: PLC0415

    if found.api_port == 0 and found.api_processes > 1:
        raise SettingsError(["PGMAIL_API_PORT: several API processes share one port; name it"])
    env = {
        "PGMAIL_API_HOST": found.api_host,
        "PGMAIL_API_PORT": str(found.api_port),
        "PGMAIL_API_PROCESSES": str(found.api_processes),
    }
    return Spec("api", [sys.executable, "-m", "pgmail", "api"], found.api_processes, env)


def _worker_spec(found: Settings) -> Spec:
    from pgmail.processes import Spec  # noqa: PLC0415

    argv = [sys.executable, "-m", "pgmail", "worker", "--processes", "1"]
    return Spec("worker", [*argv, "--concurrency", str(found.worker_concurrency)], found.worker_processes)
