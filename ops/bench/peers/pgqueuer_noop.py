"""PgQueuer on asyncpg: queue, then work as no-ops until drained, in batches."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from datetime import timedelta

import asyncpg
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries

try:
    from pgqueuer.types import QueueExecutionMode
except ImportError:
    from pgqueuer.domain.types import QueueExecutionMode
from shared import options, payload, say, thousands


async def main() -> None:
    """Say how many were queued and worked a second."""
    given = options(__doc__)
    connection = await asyncpg.connect(given.dsn)
    queries = Queries(AsyncpgDriver(connection))
    await queries.install()
    began = time.perf_counter()
    for numbers in thousands(given.jobs):
        bodies = [json.dumps(payload(given.payload, number)).encode() for number in numbers]
        await queries.enqueue(["noop"] * len(bodies), bodies, [0] * len(bodies))
    figures = {"enqueue_per_s": given.jobs / (time.perf_counter() - began)}
    if given.work:
        done = 0
        times = [0.0, 0.0]
        queuer = PgQueuer(AsyncpgDriver(connection))

        @queuer.entrypoint("noop")
        async def noop(_: Job) -> None:
            nonlocal done
            times[done > 0] = time.perf_counter()
            done += 1

        await queuer.run(
            batch_size=given.concurrency,
            mode=QueueExecutionMode.drain,
            dequeue_timeout=timedelta(seconds=2),
        )
        if done != given.jobs:
            raise SystemExit(f"{done} of {given.jobs} jobs were done")
        figures["per_s"] = (done - 1) / (times[1] - times[0])
    say(**figures)


logging.disable(logging.CRITICAL)
with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main())
