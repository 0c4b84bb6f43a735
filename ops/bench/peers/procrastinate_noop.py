"""procrastinate on psycopg: queue, then work as no-ops until nothing waits."""

from __future__ import annotations

import asyncio
import logging
import time

import procrastinate
import uvloop
from shared import options, payload, say, thousands

given = options(__doc__)
app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=given.dsn, min_size=4, max_size=16))
times: list[float] = []


@app.task(name="noop")
async def noop(from_: str, to: str, subject: str, text: str, html: str) -> None:  # noqa: ARG001
    """Do nothing, and say when."""
    times.append(time.perf_counter())


async def main() -> None:
    """Say how many were queued and worked a second."""
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        began = time.perf_counter()
        for numbers in thousands(given.jobs):
            await noop.batch_defer_async(*[payload(given.payload, number) for number in numbers])
        figures = {"enqueue_per_s": given.jobs / (time.perf_counter() - began)}
        if given.work:
            await app.run_worker_async(
                concurrency=given.concurrency, wait=False, install_signal_handlers=False
            )
            if len(times) != given.jobs:
                raise SystemExit(f"{len(times)} of {given.jobs} jobs were done")
            figures["per_s"] = (len(times) - 1) / (times[-1] - times[0])
        say(**figures)


logging.disable(logging.CRITICAL)
with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main())
