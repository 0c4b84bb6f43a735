"""The lanes that this worker knows: which are worth a look, from which head, and who goes next.

Heads are memory, not rows: a claim scans `(due_at, id)` from the last row this worker took, so the dead rows
behind it cost nothing. What became due again in the past is told by `rewind_to`; what committed late is found
by looking back, a few seconds often and a minute now and then, and by full sweeps of whoever leads. A look back
is counted from the present, not from the head: a row that commits late is late by seconds, so that behind a
backlog there is nothing to look for.

A lane is in one of three places: ready to be looked at, asleep until its next look (it was empty), or parked
under the key of what stops it (a pause, a limit, a relay that is away). Only ready lanes are ever touched by a
choice, so that 50,000 empty or stopped ones cost nothing. Pure but for the clock it is given.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from itertools import count
from uuid import UUID

from pgmail.store.work import Claim, LaneRow, Lease
from pgmail.worker.turns import PRIORITIES, Turns

ZERO = UUID(int=0)
START = datetime(1970, 1, 1, tzinfo=UTC)
INSTANT = timedelta(microseconds=1)
# Transactions that committed so late are found within so many seconds. While a snapshot is held open somewhere, each
# look reads all that was sent in its window: a minute of it every second would cost more than the sending.
LOOK_BACK, LOOK_BACK_EVERY = timedelta(seconds=3), 1.0
LOOK_FAR, LOOK_FAR_EVERY = timedelta(seconds=60), 10.0
DEAR_SECONDS = (
    0.05  # a claim that looked far and took so long: from then on somebody beside looks (lookback.py)
)
GIVEN_UP_SECONDS = (
    2.5  # a claim that failed after so long was ended by the server, or by us, for it took too long
)
LATE_ROWS = 100  # so many behind a head are a backlog, and the head goes back to them
QUIET_SECONDS = 60.0  # an empty lane goes idle after this
CROWDED, CROWDED_QUIET_SECONDS = (
    2_000,
    5.0,
)  # with so many lanes, empty ones go sooner: each look at one costs
FIRST_PAUSE = 0.02  # seconds before an empty lane is looked at again, doubled each time
LONGEST_PAUSE = {1: 0.05, 2: 0.25, 3: 0.5}  # by priority; a crowd waits longer
LOOKS_A_SECOND = 20_000  # at empty lanes, in all; the longest pause grows with their number
LANES_A_CLAIM = 200
ROWS_A_TURN = (
    25  # a tenant's least share of a claim: statements for single rows would cost more than they carry
)

_READY, _LATER, _PARKED, _OUT, _GONE = range(5)


class Lane:
    """One lane as this worker sees it."""

    __slots__ = (
        "after", "dear", "due", "far", "id", "late", "looked_back_at", "looked_far_at", "looks", "next_look",
        "place", "priority", "quiet_since", "site", "stream", "swept", "tenant", "version",
    )  # fmt: skip

    def __init__(self, row: LaneRow, now: float) -> None:
        self.tenant, self.id, self.stream = row.tenant, row.id, row.stream
        self.priority, self.site, self.version = row.priority, row.site, row.version
        self.due = START  # with `after` the head
        self.after = ZERO
        self.next_look = 0.0
        self.looks = 0  # empty ones in a row
        self.quiet_since = now
        self.looked_back_at = self.looked_far_at = now
        self.far = True  # its last claim began far back
        self.dear = False  # to look far back took long: that is not for a claim to do
        self.swept = True  # False: what looks beside begins with the first row
        self.late: tuple[datetime, int] | None = None  # so many rows from there on wait behind the head
        self.place = _OUT

    def rewind(self, to: datetime) -> None:
        """Let the head go back to `to`."""
        if to <= self.due:
            self.due, self.after = to - INSTANT, ZERO


class _Standing:
    """What each tenant had of a class so far, in rows by its weight: the least goes first."""

    __slots__ = ("_now", "_served")

    def __init__(self) -> None:
        self._served: dict[int, float] = {}
        self._now = 0.0  # where the tenant stood that was served last

    def of(self, tenant: int) -> float:
        """Who was away does not come back with a credit for all that time."""
        return max(self._served.get(tenant, 0.0), self._now)

    def serve(self, tenant: int, share: float) -> None:
        """It had so many rows, by its weight."""
        self._now = self.of(tenant)
        self._served[tenant] = self._now + share


class LaneBook:
    """All active lanes, by priority and tenant."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._now = monotonic
        self._lanes: dict[tuple[int, int], Lane] = {}
        self._ready: dict[int, dict[int, deque[Lane]]] = {priority: {} for priority in PRIORITIES}
        self._later: list[tuple[float, int, Lane]] = []
        self._parked: dict[Hashable, deque[Lane]] = {}
        self._number = count()
        # A class of its own each: what a tenant had of urgent mail is no reason to keep its newsletters waiting.
        self._standing = {priority: _Standing() for priority in self._ready}
        self._turns = Turns()
        self._told_time, self._told_at = datetime.now(UTC), monotonic()
        self.weights: Mapping[int, float] = {}
        """A tenant's share beside others; 1 where it has none here."""
        self.version: int | None = None
        self.skipped = False
        """Some head went past what waits, for it could not be reached: a look beside shall come soon."""

    def __len__(self) -> int:
        return len(self._lanes)

    def get(self, tenant: int, lane: int) -> Lane:
        """The lane of a lease (KeyError if it went idle meanwhile: it cannot, while it has leases)."""
        return self._lanes[tenant, lane]

    def update(self, rows: Iterable[LaneRow], *, complete: bool) -> bool:
        """Learn changed lanes, or all of them (`complete`). True if there is a lane to look at now."""
        now, fresh, seen = self._now(), False, set()
        for row in rows:
            key = row.tenant, row.id
            seen.add(key)
            self.version = max(self.version or 0, row.version)
            lane = self._lanes.get(key)
            if not row.active:
                if lane is not None and row.version > lane.version:
                    self._forget(key)
                continue
            if lane is None:
                lane = self._lanes[key] = Lane(row, now)
                self._to_ready(lane)
                fresh = True
            elif row.version > lane.version:
                lane.version = row.version
                if row.rewind_to is not None:
                    lane.rewind(row.rewind_to)
                self._wake(lane)
                fresh = True
        if complete:
            for key in self._lanes.keys() - seen:
                self._forget(key)
        return fresh

    def time_is(self, time: datetime) -> None:
        """Learn the database's time, the only clock that due times know."""
        self._told_time, self._told_at = time, self._now()

    def present(self) -> datetime:
        """The database's time now: as it was told last, and what passed here since (monotonic).

        This machine's own wall clock may be wrong, or be set while mail waits; it decides nothing.
        """
        return self._told_time + timedelta(seconds=self._now() - self._told_at)

    def wake_all(self) -> None:
        """Look at every lane at the next chance: something came, we do not know where."""
        for _, _, lane in self._later:
            if lane.place == _LATER:
                lane.looks = 0
                self._to_ready(lane)
        self._later.clear()

    def sweep(self) -> None:
        """Start every lane over: the rare full look, once for the fleet."""
        for lane in self._lanes.values():
            if lane.dear:
                lane.swept = False
            else:
                lane.due, lane.after = START, ZERO

    def dear(self) -> dict[int, list[Lane]]:
        """The lanes, by tenant, that are dear to look far back in: somebody else must, beside the claiming."""
        found: dict[int, list[Lane]] = {}
        for lane in self._lanes.values():
            if lane.dear:
                found.setdefault(lane.tenant, []).append(lane)
        return found

    def found_late(self, lane: Lane, due: datetime, rows: int) -> None:
        """So many rows wait behind a head, from `due` on: the next claim begins there."""
        # No more than there are: a claim that wants more reads all that lies between them and the head.
        lane.late = due - INSTANT, rows
        if rows >= LATE_ROWS:
            lane.rewind(due)
        self._wake(lane)

    def next_look(self) -> float | None:
        """Seconds until some lane is worth a look; None while none is (parked lanes wait to be freed)."""
        if any(tenants for tenants in self._ready.values()):
            return 0.0
        while self._later and self._later[0][2].place != _LATER:
            heapq.heappop(self._later)
        return max(0.0, self._later[0][0] - self._now()) if self._later else None

    def put_back(self, lanes: Iterable[Lane], seconds: float = 0.0) -> None:
        """Chosen lanes of which nothing was claimed after all: the database is away.

        Or their claim took too long, `seconds`, where it began far back: tried again it would only fail again. What
        is recent goes on, and where the rest begins is found beside.
        """
        recent = self.present() - LOOK_FAR
        for lane in lanes:
            if seconds >= GIVEN_UP_SECONDS:
                lane.late = None
                if lane.far and lane.due < recent:
                    lane.due, lane.after, lane.dear, lane.swept = recent, ZERO, True, False
                    self.skipped = True
            if lane.place == _OUT:
                self._to_ready(lane)

    def park(self, lane: Lane, key: Hashable) -> None:
        """A chosen lane may not go after all."""
        if lane.place == _OUT:
            lane.place = _PARKED
            self._parked.setdefault(key, deque()).append(lane)

    def free(self, key: Hashable, most: int | None = None) -> None:
        """What stopped these lanes is over, for so many of them at least; those that waited longest go first."""
        lanes = self._parked.get(key)
        while lanes and (most is None or most > 0):
            lane = lanes.popleft()
            if lane.place == _PARKED:
                self._to_ready(lane)
                most = None if most is None else most - 1
        if not lanes:
            self._parked.pop(key, None)

    def parked(self) -> list[Hashable]:
        """The keys of what stops lanes."""
        return list(self._parked)

    def choose(
        self, room: Callable[[int], int], stopped: Callable[[Lane], Hashable | None], tenants: int = 1
    ) -> list[tuple[int, list[Lane], int]]:
        """Who goes next: up to `tenants` of one class, each with its lanes and how many rows it may claim.

        The most urgent class with room goes first, in it the tenants that were served least by their weight;
        every sixteenth round starts with the lowest class. `room(priority)`: how many rows of that class may
        be claimed. `stopped(lane)`: the key of what stops it, to park it under; None to go.
        """
        self._promote()
        for priority in self._turns.next():
            if self._ready[priority] and (rows := room(priority)) > 0:
                chosen = self._share(priority, stopped, rows, tenants)
                if chosen:
                    return chosen
        return []

    def claims(
        self, lanes: list[Lane], rows: int, traced: Callable[[Lane], bool],
        holds: Callable[[Lane], bool] = lambda _: False,
    ) -> list[Claim]:  # fmt: skip
        """What to claim from the chosen lanes: even shares of `rows`, from their heads."""
        now = self._now()
        share, more = divmod(rows, len(lanes))  # the first lanes, which waited longest, get what is over
        present = self.present()
        result = []
        for n, lane in enumerate(lanes):
            due, after = lane.due, lane.after
            most = max(1, share + (n < more))
            lane.far = due < present - LOOK_FAR
            if lane.late is not None:  # until it is claimed: this claim may be cut, or come to nothing
                (due, found), after = lane.late, ZERO
                most = min(most, found)
            elif due > START and now - lane.looked_back_at >= LOOK_BACK_EVERY:
                lane.looked_back_at, back = now, LOOK_BACK
                if not lane.dear and now - lane.looked_far_at >= LOOK_FAR_EVERY:
                    lane.looked_far_at, back, lane.far = now, LOOK_FAR, True
                if present - back < due:
                    due, after = present - back, ZERO
            result.append(Claim(lane.id, due, after, most, traced(lane), holds(lane)))
        return result

    def claimed(
        self, lanes: list[Lane], claims: list[Claim], leases: list[Lease], seconds: float = 0.0
    ) -> None:
        """Learn what came: heads move on, lanes that gave less than asked pause, an empty claim keeps its head.

        `seconds` is what the claim took: one that began far back and took long says that there is much to walk over.
        """
        now = self._now()
        if seconds >= DEAR_SECONDS:
            for lane in lanes:
                lane.dear = lane.dear or lane.far
        counts: dict[int, int] = {}
        last: dict[int, Lease] = {}  # they come in the order of their lanes' heads
        for lease in leases:
            counts[lease.lane] = counts.get(lease.lane, 0) + 1
            last[lease.lane] = lease
        for id_, lease in last.items():
            head = self._lanes.get((lease.tenant, id_))
            if head is not None and (lease.due_at, lease.id) > (head.due, head.after):
                head.due, head.after = lease.due_at, lease.id
        asked = {claim.lane: claim for claim in claims}
        for lane in lanes:
            if lane.place != _OUT:
                continue  # it went idle meanwhile, or was parked
            got = counts.get(lane.id, 0)
            claim = asked.get(lane.id)
            if lane.late is not None and claim is not None and claim.due == lane.late[0]:
                left = lane.late[1] - got
                # Less than was asked for: the rest is others' by now.
                lane.late = (
                    (last[lane.id].due_at - INSTANT, left) if left > 0 and got >= claim.limit else None
                )
            if got:
                lane.quiet_since = now
            if got >= (1 if claim is None else claim.limit):
                lane.looks = 0
                self._to_ready(lane)
            else:
                lane.looks = 0 if got else lane.looks + 1
                self._to_later(lane, now + self._pause(lane))
        if leases:
            tenant = leases[0].tenant
            self._standing[lanes[0].priority].serve(tenant, len(leases) / self.weights.get(tenant, 1.0))

    def quiet(self) -> dict[int, list[Lane]]:
        """Lanes that were empty long enough to go idle, by tenant."""
        now, result = self._now(), dict[int, list[Lane]]()
        seconds = CROWDED_QUIET_SECONDS if len(self._lanes) > CROWDED else QUIET_SECONDS
        for lane in self._lanes.values():
            if now - lane.quiet_since >= seconds:
                lane.quiet_since = now  # asked once; asked again after another quiet time
                result.setdefault(lane.tenant, []).append(lane)
        return result

    def _share(
        self, priority: int, stopped: Callable[[Lane], Hashable | None], rows: int, tenants: int
    ) -> list[tuple[int, list[Lane], int]]:
        """Rows of one class for the tenants that go next, by their weights; never more lanes than rows."""
        n = min(tenants, max(1, rows // ROWS_A_TURN), len(self._ready[priority]))
        found: dict[int, list[Lane]] = {}
        while len(found) < n:
            next_ = self._next_tenant(priority, stopped, -(-rows // n), found)
            if next_ is None:
                break
            found[next_[0]] = next_[1]
        # All of a round advance by the same measure, or who stands first in it would always have less.
        whole = sum(self.weights.get(tenant, 1.0) for tenant in found)
        chosen = []
        for tenant, lanes in found.items():
            share = max(1, int(rows * self.weights.get(tenant, 1.0) / whole))
            self._unget(lanes[share:])
            chosen.append((tenant, lanes[:share], share))
        return chosen

    def _unget(self, lanes: list[Lane]) -> None:
        """Lanes that were taken in vain stand first in their line again."""
        for lane in reversed(lanes):
            self._to_ready(lane)
            line = self._ready[lane.priority][lane.tenant]
            line.rotate(1)

    def _next_tenant(
        self, priority: int, stopped: Callable[[Lane], Hashable | None], most: int, but: Mapping[int, object]
    ) -> tuple[int, list[Lane]] | None:
        """The least served tenant with a lane that may go, and its lanes, those that waited longest first."""
        tenants = self._ready[priority]
        while candidates := tenants.keys() - but.keys() if but else tenants.keys():
            standing = self._standing[priority]
            tenant = min(candidates, key=standing.of) if len(candidates) > 1 else next(iter(candidates))
            line, lanes = tenants[tenant], list[Lane]()
            while line and len(lanes) < min(LANES_A_CLAIM, most):
                lane = line.popleft()
                if lane.place != _READY:
                    continue
                key = stopped(lane)
                if key is None:
                    lane.place = _OUT
                    lanes.append(lane)
                else:
                    lane.place = _PARKED
                    self._parked.setdefault(key, deque()).append(lane)
            if not line:
                del tenants[tenant]
            if lanes:
                return tenant, lanes
        return None

    def _pause(self, lane: Lane) -> float:
        longest = max(LONGEST_PAUSE[lane.priority], min(1.0, len(self._lanes) / LOOKS_A_SECOND))
        return min(FIRST_PAUSE * (1 << min(lane.looks, 10)), longest)

    def _promote(self) -> None:
        now = self._now()
        while self._later and (self._later[0][0] <= now or self._later[0][2].place != _LATER):
            at, _, lane = heapq.heappop(self._later)
            if lane.place == _LATER and lane.next_look == at:
                self._to_ready(lane)

    def _wake(self, lane: Lane) -> None:
        lane.looks = 0
        if lane.place == _LATER:
            self._to_ready(lane)

    def _to_ready(self, lane: Lane) -> None:
        lane.place, lane.next_look = _READY, 0.0
        line = self._ready[lane.priority].get(lane.tenant)
        if line is None:
            line = self._ready[lane.priority][lane.tenant] = deque()
        line.append(lane)

    def _to_later(self, lane: Lane, at: float) -> None:
        lane.place, lane.next_look = _LATER, at
        heapq.heappush(self._later, (at, next(self._number), lane))

    def _forget(self, key: tuple[int, int]) -> None:
        self._lanes.pop(key).place = _GONE
