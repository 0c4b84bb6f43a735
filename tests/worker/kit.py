"""What tests of workers share: workers in this process, transports that say what a test wants."""

import asyncio
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from typing import Any
from uuid import UUID

from pgmail.config import Settings
from pgmail.domain.reply import Envelope, Phase, Reply, Result
from pgmail.maintain.leader import Leader
from pgmail.sandbox.sink import Sink
from pgmail.store.database import Database as Pool
from pgmail.store.presence import Presence
from pgmail.store.work import LaneRow, Lease, StreamRow
from pgmail.transport.base import Transport
from pgmail.transport.relay import SmtpRelay
from pgmail.worker.job import Job
from pgmail.worker.lanes import Lane
from pgmail.worker.outbox import Gate, Outbox
from pgmail.worker.process import MakeLeader, run_worker
from tests.fix_db import Database
from tests.sql.kit import one, rows

ACCEPTED = Result(phase=Phase.DOT, reply=Reply(250, "queued", "2.0.0"))
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


class Clock:
    """A monotonic clock that stands still until a test moves `now`: in place of `time`, or of its function."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    __call__ = monotonic


_number = count(1)
READY = Result(phase=Phase.EHLO, reply=Reply(250, "ready"))
AWAY = Result(phase=Phase.CONNECT, error="connection refused")
LOCKED_OUT = Result(phase=Phase.AUTH, reply=Reply(535, "no such login", "5.7.8"))

# Quick, so that tests are; a fleet at leisure has seconds here. Silence is not: a machine that holds a worker up for a
# second must not have it declared dead. Tests of rescue ask for `RESCUES`.
QUICK: Mapping[str, Any] = {
    "beat_interval_ms": 100,
    "silence_seconds": 10.0,
    "poll_interval_ms": 150,
    "drain_seconds": 8.0,
}
RESCUES: Mapping[str, Any] = {"silence_seconds": 1.5}


def a_job(priority: int = 2, *gates: Gate, at: float = 0.0) -> Job:
    """A job as a claimer makes it: its gates count it."""
    n = next(_number)
    lane = Lane(LaneRow(1, 5, "transactional", priority, "example.org", True, 1, None), 0.0)
    job = Job(
        Lease(1, UUID(int=n), UUID(int=n), 5, NOON, 1, 0, 0, None),
        lane,
        StreamRow(1, "transactional"),
        None,
        None,
    )
    job.at, job.gates = at, gates
    for gate in gates:
        gate.claimed += 1
    return job


def begin(outbox: Outbox, most: int = 1000) -> list[Job]:
    """What so many slots get that ask now."""
    found = []
    while len(found) < most and (job := outbox.next_job()) is not None:
        found.append(job)
    return found


class Scripted:
    """A transport that answers from a list, then always as `otherwise`."""

    def __init__(
        self,
        *results: Result | BaseException,
        otherwise: Result = ACCEPTED,
        probes: Iterable[Result] = (),
    ) -> None:
        self.name = "scripted"
        self.delivered: list[Envelope] = []
        self.probed = 0
        self.otherwise = otherwise
        self.gate: asyncio.Event | None = None  # deliveries wait for it
        self.begun = 0
        self._results = deque(results)
        self._probes = deque(probes)
        self._probes_as = READY

    async def deliver(self, envelope: Envelope, on_dot: Callable[[], Any] | None = None) -> Result:
        self.begun += 1
        if self.gate is not None:
            await self.gate.wait()
        self.delivered.append(envelope)
        answer = self._results.popleft() if self._results else self.otherwise
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async def probe(self) -> Result:
        self.probed += 1
        return self._probes.popleft() if self._probes else self._probes_as

    def probes_as(self, result: Result | None) -> None:
        """What every probe finds from now on; None: that it is ready."""
        self._probes_as = READY if result is None else result

    async def close(self) -> None:
        pass


class Recording(Scripted):
    """Several workers may share it: it records when each mail began (monotonic), and how many were there at once."""

    def __init__(self, *results: Result | BaseException, takes: float = 0.0, **more: Any) -> None:
        """`takes` seconds for a mail, as a real server does."""
        super().__init__(*results, **more)
        self.begun_at: list[float] = []
        self.begun_to: list[str] = []
        self.busy = self.most = 0
        self._takes = takes

    async def deliver(self, envelope: Envelope, on_dot: Callable[[], Any] | None = None) -> Result:
        self.begun_at.append(time.monotonic())
        self.begun_to.append(envelope.recipient)
        self.busy += 1
        self.most = max(self.most, self.busy)
        try:
            if self._takes:
                await asyncio.sleep(self._takes)
            return await super().deliver(envelope, on_dot)
        finally:
            self.busy -= 1

    def sites(self) -> Counter[str]:
        """How many began, by domain."""
        return Counter(address.rpartition("@")[2] for address in self.begun_to)


def most_in_a_window(moments: list[float], seconds: float = 1.0) -> int:
    """The most of these moments in any window of so many seconds, wherever it begins."""
    at, most, first = sorted(moments), 0, 0
    for n, moment in enumerate(at):
        while moment - at[first] >= seconds:
            first += 1
        most = max(most, n - first + 1)
    return most


@dataclass
class Hired:
    """A worker that runs in this process."""

    task: asyncio.Task[None]
    until: asyncio.Event
    leaders: list[Leader]
    seen: bool = False  # a test awaited its end

    async def stop(self) -> None:
        """Drain it and wait; raises what it crashed of."""
        self.until.set()
        await self.ended()

    async def ended(self) -> None:
        """Wait for its end; raises what it crashed of."""
        self.seen = True
        await self.task


class Crew:
    """Workers on one database, sending to one sink unless told otherwise."""

    def __init__(self, db: Database, sink: Sink) -> None:
        self.db, self.sink = db, sink
        self._hired: list[Hired] = []

    def relay(self, options: str = "tls=none", login: str = "", port: int | None = None) -> SmtpRelay:
        return SmtpRelay.from_url(f"smtp://{login}127.0.0.1:{port or self.sink.port}?{options}")

    async def hire(
        self,
        transports: Mapping[str, Transport] | None = None,
        *,
        concurrency: int = 8,
        lead: bool = True,
        dsn: str | None = None,
        **settings: Any,
    ) -> Hired:
        """Start a worker. Returns at once; mail tells when it works."""
        made = Settings(**{**QUICK, **settings})
        until, leaders = asyncio.Event(), []
        task = asyncio.create_task(
            run_worker(
                made,
                {"default": self.relay()} if transports is None else transports,
                until=until,
                make_leader=_leads(made, leaders) if lead else _follows,
                dsn=dsn or self.db.dsn_for("worker"),
                concurrency=concurrency,
            )
        )
        hired = Hired(task, until, leaders)
        self._hired.append(hired)
        return hired

    async def dismiss(self) -> None:
        """Stop all that work; raises what one crashed of, if the test did not take note of it."""
        left = [hired for hired in self._hired if not hired.seen]
        for hired in left:
            hired.until.set()
        for answer in await asyncio.gather(*(hired.task for hired in left), return_exceptions=True):
            if isinstance(answer, BaseException):
                raise answer


def _leads(settings: Settings, leaders: list[Leader]) -> MakeLeader:
    def make(pool: Pool, presence: Presence) -> tuple[Leader, Callable[[], bool]]:
        leader = Leader(pool, presence, silence_seconds=settings.silence_seconds)
        leaders.append(leader)
        return leader, lambda: leader.leading

    return make


class _Follower(Leader):
    """Never tries to lead."""

    async def run(self) -> None:
        self.ready()
        await self.draining.wait()


def _follows(pool: Pool, presence: Presence) -> tuple[Leader, Callable[[], bool]]:
    return _Follower(pool, presence, silence_seconds=60), lambda: False


def header(source: bytes, name: str) -> str | None:
    """The value of a header field, unfolded; None when there is no such field."""
    head = source.partition(b"\r\n\r\n")[0].decode("utf-8", "replace") + "\r\n"
    found = re.search(rf"^{re.escape(name)}:[ ]?(.*(?:\r\n[ \t].*)*)\r\n", head, re.IGNORECASE | re.MULTILINE)
    return re.sub(r"\r\n[ \t]", " ", found[1]) if found else None


def settled(connection: Any) -> Counter[str]:
    """How many recipients stand where, all told."""
    return Counter(dict(rows(connection, "select state, sum(n)::int from pgmail.recount() group by 1")))


def leased(connection: Any) -> int:
    return one(connection, "select count(*) from pgmail.queue where leased_by is not null")


def doubts(connection: Any, recipient: UUID | None = None) -> int:
    """How many times a mail was told to be in doubt."""
    text = "select count(*) from pgmail.event where type = 'email.in_doubt' and (%s::uuid is null or recipient_id = %s)"
    return one(connection, text, [recipient, recipient])
