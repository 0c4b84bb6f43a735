"""`e2e` and `queue`: mails a second through everything, and through everything but SMTP."""

from __future__ import annotations

from collections.abc import Callable

from pgmail.errors import SandboxError
from pgmail.sandbox.bench import feed
from pgmail.sandbox.bench.ground import TEMPLATE, Place, conditions
from pgmail.sandbox.bench.meter import watching
from pgmail.sandbox.bench.workers import Workers
from pgmail.store import bench as store


def e2e(
    here: Place,
    *,
    mails: int = 20_000,
    processes: int = 2,
    concurrency: int = 20,
    stream: str = "transactional",
) -> dict[str, object]:
    """Mails from a stored 4 kB text and HTML template, claimed, rendered, sent and settled.

    The rate is taken between the first and the last outcome, so that start-up does not count.
    """
    here.fresh()
    port, sink = here.sink()
    store.save_template(here.owner, "bench", *TEMPLATE)
    before = conditions(
        here, sink=sink, mails=mails, processes=processes, concurrency=concurrency, sites=20, stream=stream
    )
    figures = _drained(
        here,
        mails,
        lambda: feed.fill(here, "fill", mails, template="bench", sites=20, stream=stream),
        lambda: here.workers(processes, concurrency, f"smtp://127.0.0.1:{port}?tls=none"),
    )
    return {"mails_per_s": figures.pop("per_s"), **figures, "conditions": before}


def queue(
    here: Place,
    *,
    mails: int = 50_000,
    processes: int = 2,
    concurrency: int = 100,
    stream: str = "transactional",
) -> dict[str, object]:
    """Small mails without a template, claimed, built, thrown away and settled: what the peers' no-op jobs are."""
    here.fresh()
    before = conditions(
        here, sink="none", mails=mails, processes=processes, concurrency=concurrency, sites=20, stream=stream
    )
    figures = _drained(
        here,
        mails,
        lambda: feed.fill(here, "fill_plain", mails, sites=20, stream=stream),
        lambda: here.noop_workers(processes, concurrency),
    )
    return {"jobs_per_s": figures.pop("per_s"), **figures, "conditions": before}


def _drained(
    here: Place, mails: int, fill: Callable[[], None], start: Callable[[], Workers]
) -> dict[str, object]:
    """Queue all mails, then let workers send them; figures of the second part, and the WAL of both."""
    wal = [store.wal(here.owner)]
    fill()
    wal.append(store.wal(here.owner))
    with start() as workers, watching(here, workers) as meter:
        meter.wait_sent(mails)
        memory, waits = workers.peak_rss_mb(), meter.waits()
    wal.append(store.wal(here.owner))
    sent = store.sent(here.owner)
    if sent.after_first == 0:
        raise SandboxError(f"{mails} mails were too few: all were recorded at once")
    return {
        "per_s": round(sent.after_first / sent.seconds),
        "wal_enqueue_bytes": round((wal[1] - wal[0]) / mails),
        "wal_send_bytes": round((wal[2] - wal[1]) / mails),
        "content_bytes": round(store.content_bytes(here.owner)),
        "peak_rss_mb": memory,
        "sessions_by_wait": waits,
    }
