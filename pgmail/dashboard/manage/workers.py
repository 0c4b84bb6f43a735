"""The fleet: its processes and their beats, who leads, the relays and their health, and the limits that hold.

What can go wrong: a process that died without a word still stands here until it is rescued; the age of its last beat
tells, and is marked once it is longer than a healthy one ever is.
"""

from __future__ import annotations

from typing import Any

from litestar import Request, Response, get

from pgmail import __version__
from pgmail.dashboard.frame import page
from pgmail.dashboard.guard import SEE, caller_of, database_of
from pgmail.store import fleet, lanes
from pgmail.store.schema import SCHEMA_VERSION
from pgmail.store.tenant import acting_as

AnyRequest = Request[Any, Any, Any]

LATE_SECONDS = 30.0  # without a beat: a process beats every second or two; the overview counts by the same


@get("/workers", scope=SEE)
async def show_workers(request: AnyRequest) -> Response[Any]:
    """The page."""
    return page(request, "manage/workers.html", title="Workers", **await _facts(request))


@get("/workers/live", scope=SEE)
async def live_workers(request: AnyRequest) -> Response[Any]:
    """Its live part."""
    return page(request, "manage/workers_live.html", title="Workers", **await _facts(request))


async def _facts(request: AnyRequest) -> dict[str, Any]:
    async with acting_as(database_of(request), caller_of(request)) as connection:
        processes = await fleet.processes(connection)
        relays = await fleet.relays(connection)
        limits = await lanes.limits(connection)
    sending = [row for row in processes if row.program == "worker" and row.beat_seconds < LATE_SECONDS]
    return {
        "processes": processes,
        "relays": relays,
        "limits": limits,
        "sending": sending,
        "slots": sum(row.concurrency for row in sending if row.state == "running"),
        "leader": next((row for row in processes if row.leads), None),
        "late": LATE_SECONDS,
        "program": __version__,
        "schema": SCHEMA_VERSION,
    }


HANDLERS = (show_workers, live_workers)
