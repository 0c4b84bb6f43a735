"""A claimed mail on its way through a worker: its lease and all that is needed to send it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

from pgmail.store.work import Lease, RecipientRow, Settlement, StreamRow

if TYPE_CHECKING:
    from pgmail.domain.reply import Result
    from pgmail.render.mime import Wire
    from pgmail.shaping.verdict import Verdict
    from pgmail.tracing import Attempt
    from pgmail.worker.content import Message
    from pgmail.worker.lanes import Lane
    from pgmail.worker.outbox import Gate


class Delay(NamedTuple):
    """Why a lease is given back, and how long its mail waits then."""

    why: str
    seconds: float


class Job:
    """A lease with all that is needed to send it.

    `relay` is who carries it. `at` is the moment (monotonic) that its tokens are for, 0 without a limit; it
    lapses at `until`. `gates` bound how many of its kind are on the wire at once; `called_by` is the one that it
    waited at and that let it on. `loaded_at` (monotonic) is when its recipient was last looked up. `trace` takes
    note of the attempt that a slot is at, where its caller wants that. `wire` are its bytes, where it was made and
    was late by then.
    """

    __slots__ = (
        "__weakref__", "at", "called_by", "gates", "lane", "lease", "loaded_at", "message", "person", "relay", "stream",
        "trace", "until", "wire",
    )  # fmt: skip

    def __init__(
        self,
        lease: Lease,
        lane: Lane,
        stream: StreamRow,
        message: Message | None,
        person: RecipientRow | None,
    ) -> None:
        self.lease, self.lane, self.stream, self.message, self.person = lease, lane, stream, message, person
        self.relay = stream.relay
        self.loaded_at = time.monotonic()
        self.at = self.until = 0.0
        self.gates: tuple[Gate, ...] = ()
        self.called_by: Gate | None = None
        self.trace: Attempt | None = None
        self.wire: Wire | None = None

    def sent(self, verdict: Verdict, result: Result, error: str | None) -> Settlement:
        """The settlement of one that was accepted, as nearly all are: written out, for it is made for each mail."""
        lease, lane = self.lease, self.lane
        if self.trace is not None:
            self.trace.result = "sent"
        return Settlement(
            id=lease.id, message_id=lease.message_id, claims=lease.claims, kind="sent", lane=lease.lane,
            stream=lane.stream, priority=lane.priority, site=lane.site, attempts=lease.attempts, relay=self.relay,
            code=verdict.code, enhanced=verdict.enhanced, reply=verdict.reply, error=error,
            phase=result.phase._value_,  # `value` is a function, and slow
            remote_host=result.remote_host, tls=result.tls, ms=result.ms,
        )  # fmt: skip

    def settlement(self, kind: str, **facts: Any) -> Settlement:
        """What became of it."""
        lease, lane = self.lease, self.lane
        if self.trace is not None:
            self.trace.result = kind
        return Settlement(
            id=lease.id, message_id=lease.message_id, claims=lease.claims, kind=kind, lane=lease.lane,
            stream=lane.stream, priority=lane.priority, site=lane.site, attempts=lease.attempts, **facts,
        )  # fmt: skip
