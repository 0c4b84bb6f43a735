"""`priority` and `wake`: how long a mail takes from its commit to the sink's 250.

The sink is pgmail's own, which reports the time of each 250; Postfix's cannot. Both ends are on one machine, so
one clock. A latency starts right before the commit, so the commit's own time is in it.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

from pgmail.errors import SandboxError
from pgmail.sandbox.bench import feed
from pgmail.sandbox.bench.ground import Place, conditions, until
from pgmail.sandbox.bench.meter import Meter, Report, spread, watching
from pgmail.store import bench as store

EVERY_SECONDS = 0.1  # between two mails that are not to wait
LAST_SHARE = 0.05  # of the backlog: with less, full load is over
ARRIVE_SECONDS = 30.0


def priority(
    here: Place,
    *,
    mails: int = 200_000,
    seconds: int = 20,
    processes: int = 2,
    concurrency: int = 20,
) -> dict[str, object]:
    """A mail of high priority each 100 ms, while workers send a backlog of low priority as fast as they can."""
    here.fresh()
    port, report = _sink(here)
    feed.fill(here, "fill_personal", mails, lanes=20)
    before = conditions(
        here, sink="pgmail's own", mails=mails, processes=processes, concurrency=concurrency, every_ms=100
    )
    relay = f"smtp://127.0.0.1:{port}?tls=none"
    with here.workers(processes, concurrency, relay) as workers, watching(here, workers) as meter:
        meter.wait_sent(min(2000, mails // 20))
        first, began = meter.asking.progress(), time.monotonic()
        asked = _ask_often(here, meter, mails, seconds)
        rate = (meter.asking.progress() - first) / (time.monotonic() - began)
        took = _arrived(report, asked)
        memory = workers.peak_rss_mb()
    return {
        **spread(took),
        "asked": len(took),
        "backlog_per_s": round(rate),
        "peak_rss_mb": memory,
        "conditions": before,
    }


def wake(here: Place, *, mails: int = 50, processes: int = 2, concurrency: int = 20) -> dict[str, object]:
    """Single mails to workers that have nothing to do and sleep, each after they fell asleep again."""
    here.fresh()
    port, report = _sink(here)
    before = conditions(here, sink="pgmail's own", mails=mails, processes=processes, concurrency=concurrency)
    relay = f"smtp://127.0.0.1:{port}?tls=none"
    asked: dict[str, float] = {}
    commits: list[float] = []
    with (
        here.workers(processes, concurrency, relay) as workers,
        store.session(here.dsn_for("producer")) as sending,
    ):
        sending.send_high("first@example1.com")  # opens the connections that later ones find open
        _arrived(report, {"first@example1.com": 0.0})
        for number in range(mails):
            workers.ready(asleep=True)
            time.sleep(random.uniform(0.01, 0.1))  # noqa: S311 - not in step with anybody's clock
            address = f"wake{number}@example{number % 20}.com"
            asked[address], commit = sending.send_high(address)
            commits.append(commit)
            _arrived(report, {address: 0.0})
    disk = {f"commit_{name}": ms for name, ms in spread(commits).items()}  # of which the disk had this
    return {**spread(_arrived(report, asked)), **disk, "asked": len(asked), "conditions": before}


def _sink(here: Place) -> tuple[int, Report]:
    """Start a sink that reports."""
    path: Path = here.folder / f"report-{time.monotonic_ns()}.jsonl"
    return here.own_sink(path), Report(path)


def _ask_often(here: Place, meter: Meter, mails: int, seconds: int) -> dict[str, float]:
    """Send on a schedule that does not wait for answers, as long as there is a backlog; recipients and times."""
    asked: dict[str, float] = {}
    with store.session(here.dsn_for("producer")) as sending:
        began = time.monotonic()
        for number in range(round(seconds / EVERY_SECONDS)):
            if number % 10 == 0 and meter.asking.progress() > mails * (1 - LAST_SHARE):
                break
            time.sleep(max(began + number * EVERY_SECONDS - time.monotonic(), 0))
            address = f"high{number}@example{number % 20}.com"
            asked[address], _ = sending.send_high(address)
    if not asked:
        raise SandboxError("the backlog was gone before anything could be measured; give more --mails")
    return asked


def _arrived(report: Report, asked: dict[str, float]) -> list[float]:
    """Wait until all have arrived; the seconds that each took."""
    until(
        lambda: report.accepted().keys() >= asked.keys(),
        ARRIVE_SECONDS,
        f"{ARRIVE_SECONDS:g} s later not all of {len(asked)} mails had arrived",
    )
    at = report.accepted()
    return [at[address] - began for address, began in asked.items()]
