"""`backlog`, `lanes` and `pinned`: whether the pace of the queue holds however deep, wide or bloated it is.

The workers do all but SMTP (`bench_noop`), so that the queue sets the pace and not the sink.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from statistics import mean

from pgmail.errors import SandboxError
from pgmail.sandbox.bench import feed
from pgmail.sandbox.bench.ground import Place, conditions
from pgmail.sandbox.bench.meter import watching
from pgmail.store import bench as store

LEVEL = 50_000  # mails queued at any time while `pinned` runs
SLICES = 10

Row = dict[str, int]
"""A pace, `per_s`, and the most memory that a worker process held, `peak_rss_mb`; 0 where nobody tells.

`lowest_backlog` is the least that was queued meanwhile, where a feeder kept it up.
"""


def backlog(
    here: Place,
    *,
    sizes: Sequence[int] = (10_000, 200_000),
    seconds: int = 10,
    processes: int = 2,
    concurrency: int = 100,
) -> dict[str, object]:
    """Mails a second claimed and settled while a feeder keeps backlogs of some sizes, over 20 sites."""
    before = conditions(
        here, sizes=list(sizes), seconds=seconds, processes=processes, concurrency=concurrency, sites=20
    )
    rows = []
    for size in sizes:
        here.fresh()
        found = _kept(here, size, seconds=seconds, processes=processes, concurrency=concurrency)
        rows.append({"size": size, **found})
    return {"backlog": rows, "least_to_most": _evenness(rows), "conditions": before}


def lanes(
    here: Place,
    *,
    sizes: Sequence[int] = (10, 1000, 50_000),
    tenants: int = 1000,
    mails: int = 200_000,
    seconds: int = 10,
    processes: int = 2,
    concurrency: int = 100,
) -> dict[str, object]:
    """Mails a second out of so many lanes of one tenant, and out of so many tenants with 20 lanes each."""
    before = conditions(
        here, mails=mails, seconds=seconds, processes=processes, concurrency=concurrency, tenants=tenants
    )

    def rate(filling: Callable[[], None]) -> Row:
        here.fresh()
        return _deep(here, mails, filling, seconds=seconds, processes=processes, concurrency=concurrency)

    rows = [
        {"size": size, **rate(partial(feed.fill, here, "fill_personal", mails, lanes=size))} for size in sizes
    ]
    made = store.create_tenants(here.owner, tenants)
    shared = [{"size": len(made), **rate(partial(feed.fill_tenants, here, mails, made))}]
    return {
        "lanes": rows,
        "tenants": shared,
        "least_to_most": _evenness([*rows, *shared]),
        "conditions": before,
    }


def pinned(
    here: Place, *, seconds: int = 60, processes: int = 2, concurrency: int = 100
) -> dict[str, object]:
    """The pace at full load while a transaction holds a snapshot open, beside the pace before.

    Mail is fed all the time, in both parts, so that load is full however long it takes; dead rows pile up
    in the second. `ratio` is the mean of its slices by the mean without a snapshot, `last_to_first` its last
    three slices by its first three: below 1 is a slope.
    """
    here.fresh()
    before = conditions(here, seconds=seconds, processes=processes, concurrency=concurrency, sites=20)
    with (
        feed.Feeder(here, LEVEL) as feeder,
        here.noop_workers(processes, concurrency) as workers,
        watching(here, workers) as meter,
    ):
        meter.wait_sent(2000)
        meter.slices(min(seconds / 5, 10), 1)  # caches fill, plans settle: not a figure
        free = meter.slices(min(seconds, 60), SLICES)
        with store.pinned(here.owner):
            held = meter.slices(seconds, SLICES)
        feeder.check()
        dead, memory = meter.asking.dead_rows(), workers.peak_rss_mb()
    if not any(free):
        raise SandboxError("no mail was sent while nothing was in its way")
    return {
        "ratio": round(mean(held) / mean(free), 3),
        "last_to_first": round(mean(held[-3:]) / max(mean(held[:3]), 1), 3),
        "free_per_s": round(mean(free)),
        "pinned_per_s": round(mean(held)),
        "free_slices": free,
        "pinned_slices": held,
        "dead_rows": dead,
        "lowest_backlog": feeder.lowest,
        "peak_rss_mb": memory,
        "sessions_by_wait": meter.waits(),
        "conditions": before | {"slice_seconds": seconds / SLICES, "level": LEVEL},
    }


def _kept(here: Place, size: int, *, seconds: int, processes: int, concurrency: int) -> Row:
    """The pace while a feeder keeps so many mails queued, the same for all sizes: what differs is the depth."""
    with (
        feed.Feeder(here, size) as feeder,
        here.noop_workers(processes, concurrency) as workers,
        watching(here, workers) as meter,
    ):
        meter.wait_sent(min(10_000, size))  # all workers are at it by then
        pace = meter.rate(seconds)
        feeder.check()
        if feeder.lowest <= 0:
            raise SandboxError(
                f"a backlog of {size} is too small: the workers were faster than it was filled"
            )
        return {
            "per_s": pace,
            "lowest_backlog": feeder.lowest,
            "peak_rss_mb": max([*workers.peak_rss_mb(), 0]),
        }


def _deep(
    here: Place,
    size: int,
    filling: Callable[[], None],
    *,
    seconds: int,
    processes: int,
    concurrency: int,
) -> Row:
    """The pace out of a backlog that is there before the workers are."""
    filling()
    with here.noop_workers(processes, concurrency) as workers, watching(here, workers) as meter:
        meter.wait_sent(min(5000, size // 20))  # all workers are at it by then
        pace = meter.rate(seconds, most=size * 9 // 10)
        return {"per_s": pace, "peak_rss_mb": max([*workers.peak_rss_mb(), 0])}


def _evenness(rows: Sequence[Row]) -> float:
    """The slowest by the fastest: 1 is flat."""
    rates = [row["per_s"] for row in rows]
    return round(min(rates) / max(*rates, 1), 3)
