"""What a sender takes note of: how long mail took, what was answered; for figures always, for spans where wanted.

A mail costs a few additions. With the connection kept open there is nothing to wait for, and then `connection` is next
to nothing. What can go wrong: a reply's reason becomes a label, so reasons must be few; they are those of the verdict
and of the rules for replies.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from pgmail.domain.reply import Result
from pgmail.metrics.counts import Histogram, Names, Sample
from pgmail.shaping.verdict import Verdict
from pgmail.tracing import Tracing
from pgmail.worker.job import Job


class Deliveries:
    """Counts of one process. `sites` are those that figures name; `tracing` makes spans. A source of figures."""

    def __init__(self, sites: Names | None = None, tracing: Tracing | None = None) -> None:
        self._sites, self._tracing = sites or Names(), tracing
        self._replies: dict[tuple[str, int | None, str], int] = {}  # by site, first digit of the code, reason
        self._render, self._connection, self._smtp = Histogram(), Histogram(), Histogram()
        self._in_doubt = 0
        self.withheld = 0
        """Mails whose end of data was not sent, at our own wish."""
        self.heavy = 0
        """Mails made in a process apart."""

    def samples(self) -> Iterator[Sample]:
        """Tell all of it."""
        for phase, seconds in (
            ("render", self._render),
            ("connection", self._connection),
            ("smtp", self._smtp),
        ):
            yield Sample("phase_seconds", (phase,), seconds)
        for (site, digit, reason), n in self._replies.items():
            yield Sample("replies", (site, "none" if digit is None else f"{digit}xx", reason), n)
        yield Sample("in_doubt", (), self._in_doubt)
        yield Sample("withheld", (), self.withheld)
        yield Sample("heavy_makes", (), self.heavy)

    def traces(self, job: Job) -> bool:
        """Tell whether a job is of a trace, and there is somebody to tell of it."""
        return (
            self._tracing is not None and job.message is not None and job.message.row.traceparent is not None
        )

    def begin(self, job: Job, waited_seconds: float, worker: int) -> None:
        """Begin the record of an attempt, for a job of a trace that is sampled."""
        if self._tracing is None or job.message is None:
            return
        lease, lane = job.lease, job.lane
        job.trace = self._tracing.attempt(
            job.message.row.traceparent,
            waited_seconds,
            {
                "pgmail.message": str(lease.message_id), "pgmail.recipient": str(lease.id),
                "pgmail.stream": lane.stream, "pgmail.site": lane.site,
                "pgmail.attempt": lease.attempts + 1, "pgmail.worker": worker,
            },
        )  # fmt: skip

    def end(self, job: Job) -> None:
        """Tell the attempt's spans."""
        if job.trace is not None:
            job.trace.end()
            job.trace = None

    def made(self, job: Job, began: float) -> None:
        """Take note of a mail that was made since `began` (monotonic)."""
        seconds = time.monotonic() - began
        self._render.observe(seconds)
        if job.trace is not None:
            job.trace.part("render", seconds)

    def delivered(self, job: Job, result: Result, began: float) -> None:
        """Take note of a delivery since `began`: its wait for a place on a connection, then the remote's part."""
        remote = result.ms / 1000
        waited = max(0.0, time.monotonic() - began - remote)
        self._connection.observe(waited)
        self._smtp.observe(remote)
        if job.trace is None:
            return
        reply, phase = result.reply, result.phase.value
        facts = {
            "smtp.phase": phase, "server.address": result.remote_host, "tls.protocol": result.tls,
            "pgmail.relay": job.relay,
        }  # fmt: skip
        codes = {} if reply is None else {"smtp.code": reply.code, "smtp.enhanced": reply.enhanced}
        error = None if result.accepted else f"{'no reply' if reply is None else reply.code} at {phase}"
        job.trace.part("connection", waited, ago=remote)
        job.trace.part("smtp", remote, {**facts, **codes}, kind="client", error=error)

    def answered(self, site: str, verdict: Verdict) -> None:
        """Count what an answer of a site meant."""
        key = self._sites.of(site), None if verdict.code is None else verdict.code // 100, verdict.reason
        self._replies[key] = self._replies.get(key, 0) + 1
        if verdict.kind == "in_doubt":
            self._in_doubt += 1
