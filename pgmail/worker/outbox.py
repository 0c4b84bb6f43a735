"""Claimed mail in front of the slots: who goes next, not before its moment, not more at once than allowed.

The most urgent class goes first; every sixteenth turn begins with the lowest, so that it keeps moving. Some
slots are reserved for the classes above: a password reset finds one although a million newsletters wait on
hosts that answer slowly. A mail with tokens of a limit waits for its moment; one behind a full gate (the
connections that a site or relay is allowed) waits there and stands in nobody's way.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from itertools import count

from pgmail.metrics.counts import Sample
from pgmail.worker.job import Job
from pgmail.worker.turns import PRIORITIES, Turns

RESERVED = 0.1  # of the slots, kept from each class for those above it
RESERVE_FROM = 4  # slots; with fewer there is nothing to spare
EARLY_SECONDS = 0.0005  # a timer fires to the millisecond
MANY = 1 << 30


def _nothing() -> None:
    return


class Gate:
    """So many mails of one kind may be on the wire at once. `limit` None: no bound.

    `by_class`: so many of each class, not counting what is less urgent: a newsletter that hangs does not keep a
    password reset waiting. It is for bounds of our own; what a remote counts is counted in all.
    """

    __slots__ = ("_begun", "_called", "by_class", "claimed", "limit", "waiting")

    def __init__(self, limit: int | None = None, *, by_class: bool = False) -> None:
        self.limit, self.by_class = limit, by_class
        self.claimed = 0  # mails of this kind in the outbox or on the wire
        self.waiting: dict[int, deque[Job]] = {priority: deque() for priority in PRIORITIES}
        self._begun = dict.fromkeys(PRIORITIES, 0)
        self._called = dict.fromkeys(PRIORITIES, 0)

    @property
    def busy(self) -> int:
        """Mails on the wire."""
        return sum(self._begun.values())

    @property
    def called(self) -> int:
        """Mails that waited here and were let on, but not begun yet."""
        return sum(self._called.values())

    def full(self, priority: int) -> bool:
        """Whether no other of a class may begin."""
        return self.limit is not None and self._count(self._begun, priority) >= self.limit

    def room(self, priority: int) -> int:
        """How many more of a class may be let on."""
        if self.limit is None:
            return MANY
        return self.limit - self._count(self._begun, priority) - self._count(self._called, priority)

    def begin(self, priority: int, n: int = 1) -> None:
        """So many began, or ended (-1)."""
        self._begun[priority] += n

    def call(self, priority: int, n: int = 1) -> None:
        """So many were let on, or are no longer about to begin (-1)."""
        self._called[priority] += n

    def _count(self, of: dict[int, int], priority: int) -> int:
        return sum(n for p, n in of.items() if p <= priority) if self.by_class else sum(of.values())


class Outbox:
    """Jobs, and the slots that wait for them. Belongs to one event loop."""

    def __init__(self, slots: int, monotonic: Callable[[], float]) -> None:
        self._now, self.slots = monotonic, slots
        reserve = max(1, round(slots * RESERVED)) if slots >= RESERVE_FROM else 0
        self._room = {1: slots, 2: slots - reserve, 3: slots - 2 * reserve}
        self._ready: dict[int, deque[Job]] = {priority: deque() for priority in PRIORITIES}
        self._called: dict[int, deque[Job]] = {priority: deque() for priority in PRIORITIES}  # by gates
        self._timed: list[tuple[float, int, Job]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._gates: dict[Hashable, Gate] = {}
        self._number = count()
        self._turns = Turns()
        self._idle: deque[asyncio.Future[None]] = deque()
        self.busy = 0
        """Jobs that slots are at."""
        self.held = dict.fromkeys(PRIORITIES, 0)
        """Jobs inside that no slot has begun, by priority."""
        self._count = 0  # of them all
        self.low = 0
        self.lowered: Callable[[], None] = _nothing
        """Called when slots have taken all but `low` jobs: time to fetch others, while these are sent."""

    def __len__(self) -> int:
        return self._count

    def samples(self) -> Iterator[Sample]:
        """How many slots there are and have mail, and how much waits for one."""
        yield Sample("slots", (), self.slots)
        yield Sample("slots_busy", (), self.busy)
        for priority, n in self.held.items():
            yield Sample("stock", (str(priority),), n)

    def gate(self, key: Hashable, *, by_class: bool = False) -> Gate:
        """The gate of a relay or site, by its key; open until it is given a limit."""
        gate = self._gates.get(key)
        if gate is None:
            gate = self._gates[key] = Gate(by_class=by_class)
        return gate

    def gates(self) -> Mapping[Hashable, Gate]:
        """All gates that anyone asked for."""
        return self._gates

    def put(self, job: Job) -> None:
        """Take a job in."""
        self.held[job.lane.priority] += 1
        self._count += 1
        if job.at and job.at > self._now():
            heapq.heappush(self._timed, (job.at, next(self._number), job))
            if self._timed[0][2] is job:
                self._arm()
        else:
            self._ready[job.lane.priority].append(job)
            self._call()

    async def get(self) -> Job:
        """The next job, when there is one for this slot. Its end must be told by `done`."""
        while True:
            job = self.next_job()
            if job is not None:
                return job
            waiting = asyncio.get_running_loop().create_future()
            self._idle.append(waiting)
            try:
                await waiting
            except asyncio.CancelledError:
                if waiting in self._idle:
                    self._idle.remove(waiting)
                else:
                    self._call()  # it was told of a job, which another slot must take now
                raise

    def done(self, job: Job) -> None:
        """A job that `get` gave is over: its places are free."""
        self.busy -= 1
        for gate in job.gates:
            gate.begin(job.lane.priority, -1)
            gate.claimed -= 1
            self.opened(gate)
        if self._idle:
            self._call()  # a reserved place may have come free for a slot that was turned away

    def opened(self, gate: Gate) -> None:
        """A gate may have room: let on who waited there longest, the most urgent first."""
        for priority in PRIORITIES:
            waiting = gate.waiting[priority]
            if not waiting:
                continue
            called = [waiting.popleft() for _ in range(min(gate.room(priority), len(waiting)))]
            if not called:
                continue
            for job in called:
                job.called_by = gate
                self._call()
            self._called[priority].extend(called)
            gate.call(priority, len(called))

    def take_all(self) -> list[Job]:
        """Empty it: all jobs that no slot has begun."""
        return self.take(lambda _job: True)

    def withdraw(self, gate: Gate) -> list[Job]:
        """Take out the jobs behind a gate: it will not open soon, and others may have them."""
        return self.take(lambda job: gate in job.gates)

    def take(self, wanted: Callable[[Job], bool]) -> list[Job]:
        """Take out the jobs that no slot has begun and that are wanted back."""
        taken: list[Job] = []

        def keep(line: Iterable[Job]) -> Iterator[Job]:
            for job in line:
                if wanted(job):
                    taken.append(job)
                else:
                    yield job

        for lines in (self._called, self._ready, *(gate.waiting for gate in self._gates.values())):
            for priority, line in lines.items():
                lines[priority] = deque(keep(line))
        timed = {id(job) for job in keep(job for _, _, job in self._timed)}
        self._timed = [entry for entry in self._timed if id(entry[2]) in timed]
        heapq.heapify(self._timed)
        shortened: list[Gate] = []
        for job in taken:
            self.held[job.lane.priority] -= 1
            self._count -= 1
            for gate in job.gates:
                gate.claimed -= 1
            if job.called_by is not None:
                job.called_by.call(job.lane.priority, -1)
                shortened.append(job.called_by)
                job.called_by = None
        for gate in shortened:
            self.opened(gate)  # it does not use that place now
        return taken

    def next_job(self) -> Job | None:
        """The next job if there is one for a slot now, as `get`."""
        for priority in self._turns.next():
            called, ready = self._called[priority], self._ready[priority]
            while self.busy < self._room[priority] and (line := called or ready):
                job = line.popleft()
                gates = job.gates
                if gates:
                    called_by, job.called_by = job.called_by, None
                    if called_by is not None:
                        called_by.call(priority, -1)
                    full = next((gate for gate in gates if gate.full(priority)), None)
                    if full is not None:
                        self._wait_at(full, job, called_by)
                        continue
                    for gate in gates:
                        gate.begin(priority)
                self.held[priority] -= 1
                self.busy += 1
                self._count -= 1
                if self._count == self.low:
                    self.lowered()
                return job
        return None

    def _wait_at(self, gate: Gate, job: Job, called_by: Gate | None) -> None:
        waiting = gate.waiting[job.lane.priority]
        if gate is called_by:  # another took its place: it has not lost its turn
            waiting.appendleft(job)
            return
        waiting.append(job)
        if called_by is not None:
            self.opened(called_by)  # it does not use that place now

    def _call(self) -> None:
        """Tell one waiting slot to look."""
        while self._idle:
            waiting = self._idle.popleft()
            if not waiting.done():
                waiting.set_result(None)
                return

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        seconds = max(0.0, self._timed[0][0] - self._now())
        self._timer = asyncio.get_running_loop().call_later(seconds, self._come)

    def _come(self) -> None:
        """The moment of some jobs has come."""
        self._timer, now = None, self._now()
        while self._timed and self._timed[0][0] <= now + EARLY_SECONDS:
            job = heapq.heappop(self._timed)[2]
            self._ready[job.lane.priority].append(job)
            self._call()
        if self._timed:
            self._arm()
