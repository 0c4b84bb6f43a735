"""`pgmail bench NAME`: figures of this machine, under conditions that are printed with them.

Each bench has a durable embedded PostgreSQL and a database of its own, real roles, real worker processes and a
real SMTP sink (Postfix's `smtp-sink` where it is installed, ours otherwise). A figure says nothing without its
conditions, and nothing about another machine; compare ratios of one run.

    ground       where: the server, the database, the sinks, the processes
    meter, feed  how: rates, waits and memory on one side, mail on the other
    throughput   e2e, queue          intake   enqueue, api
    latency      priority, wake      depth    backlog, lanes, pinned

What can go wrong: something else runs on the machine. `load_before` among the conditions gives it away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from pgmail.sandbox.bench import depth, intake, latency, peers, throughput
from pgmail.sandbox.bench.ground import SETTINGS, TEMPLATE, Place, conditions, place

__all__ = ["BENCHES", "SETTINGS", "TEMPLATE", "Place", "conditions", "place", "run"]

BENCHES: Mapping[str, Callable[..., dict[str, object]]] = {
    "e2e": throughput.e2e,
    "queue": throughput.queue,
    "enqueue": intake.enqueue,
    "api": intake.api,
    "priority": latency.priority,
    "wake": latency.wake,
    "pinned": depth.pinned,
    "backlog": depth.backlog,
    "lanes": depth.lanes,
}


def run(
    name: str, folder: Path, options: Mapping[str, object], *, with_peers: bool = False
) -> dict[str, object]:
    """Run one bench on a server of its own below `folder`; then the peers, if they are asked for.

    `options` are the keyword arguments of the bench. The figures, and `bench`, its name; with peers also
    `peers` and `peers_missing`. Raises SandboxError when the bench could not be run to its end.
    """
    with place(folder) as here:
        figures = {"bench": name, **BENCHES[name](here, **options)}
    return figures | (peers.race(name, folder.with_name("race"), figures) if with_peers else {})
