"""`pgmail worker --processes N`: one process runs the worker itself, several run under a tree of processes.

The parent of a tree does nothing but keep its children; a worker that was declared dead or crashed ends, and is
started again as a new worker. What can go wrong is in `processes`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

import structlog
import uvloop

from pgmail.collector import calm_collector
from pgmail.config import Settings
from pgmail.processes import ProcessTree, Spec, die_with_parent
from pgmail.shaping.rulebook import book
from pgmail.store.faults import FencedOut
from pgmail.transport.base import Transport
from pgmail.worker.apart import environ_of
from pgmail.worker.process import Beside, MakeLeader, run_worker
from pgmail.worker.ward import Ward

_log = structlog.get_logger()


def child_argv(concurrency: int) -> list[str]:
    """The command of one worker process."""
    return [sys.executable, "-m", "pgmail", "worker", "--processes", "1", "--concurrency", str(concurrency)]


def run_workers(settings: Settings, processes: int, concurrency: int) -> int:
    """Run several worker processes under this one. Returns the exit code."""
    tree = ProcessTree(
        [Spec("worker", child_argv(concurrency), processes)],
        drain_seconds=settings.drain_seconds + 5,
        note=lambda word, facts: _log.info(f"worker.{word}", **facts),
    )
    return tree.run()


def run_one(
    settings: Settings,
    transports: Mapping[str, Transport],
    *,
    make_leader: MakeLeader,
    dsn: str,
    concurrency: int,
    ward_argv: Sequence[str] = (),
    beside: Beside | None = None,
) -> int:
    """Run the worker in this process until SIGTERM or SIGINT; drains. Returns the exit code.

    `ward_argv` starts a process apart, for mail that a worker died with. `beside` makes what else runs here.
    """
    die_with_parent(seconds=settings.drain_seconds + 5)
    book()  # the rules of replies: not at the first refusal, when all mail would wait for it
    calm_collector()
    try:
        uvloop.run(
            _until_told(
                partial(
                    run_worker, settings, transports, make_leader=make_leader, dsn=dsn, concurrency=concurrency,
                    ward=Ward(ward_argv, environ_of(settings, os.environ)) if ward_argv else None, beside=beside,
                )
            )
        )  # fmt: skip
    except FencedOut as error:
        _log.error("worker.fenced_out", error=str(error))
        return 75  # EX_TEMPFAIL: start me again, as a new worker
    return 0


async def _until_told(work: Callable[..., Awaitable[None]]) -> None:
    until = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, until.set)
    await work(until=until)
