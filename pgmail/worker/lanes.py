"""The lanes that this worker knows: which are worth a look, from which head, and who goes next.

Heads are memory, not rows: a claim scans `(due_at, id)` from the last row this worker took, so the dead rows
behind it cost nothing. What became due again in the past is told by `rewind_to`; what committed late is found
by looking back over a window once a second, and by full sweeps of whoever leads.
Pure but for the clock it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from uuid import UUID

from pgmail.store.work import Claim, LaneRow, Lease

ZERO = UUID(int=0)
START = datetime(1970, 1, 1, tzinfo=UTC)
LOOK_BACK = timedelta(seconds=60)  # transactions that committed up to this late are found within a second
LOOK_BACK_EVERY = 1.0
QUIET_SECONDS = 60.0  # an empty lane goes idle after this
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 0.25  # seconds before an empty lane is looked at again
LANES_A_CLAIM = 200


class Lane:
    """One lane as this worker sees it."""

    __slots__ = (
        "after", "due", "id", "looked_back_at", "looks", "next_look", "priority", "quiet_since",
        "site", "stream", "tenant", "version",
    )  # fmt: skip

    def __init__(self, row: LaneRow, now: float) -> None:
        self.tenant, self.id, self.stream = row.tenant, row.id, row.stream
        self.priority, self.site, self.version = row.priority, row.site, row.version
        self.due = START  # with `after` the head
        self.after = ZERO
        self.next_look = 0.0
        self.looks = 0  # empty ones in a row
        self.quiet_since = now
        self.looked_back_at = now

    def rewind(self, to: datetime) -> None:
        """Let the head go back to `to`."""
        if to <= self.due:
            self.due, self.after = to - timedelta(microseconds=1), ZERO


class LaneBook:
    """All active lanes, by priority and tenant."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._now = monotonic
        self._lanes: dict[tuple[int, int], Lane] = {}
        self._served: dict[int, float] = {}  # rows claimed a tenant: the smallest goes first
        self._served_now = 0.0  # where the tenant stood that was served last: who was away starts from here
        self._round = 0
        self.version: int | None = None

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
                    del self._lanes[key]
                continue
            if lane is None:
                self._lanes[key] = Lane(row, now)
                fresh = True
            elif row.version > lane.version:
                lane.version = row.version
                if row.rewind_to is not None:
                    lane.rewind(row.rewind_to)
                self._wake(lane, now)
                fresh = True
        if complete:
            for key in self._lanes.keys() - seen:
                del self._lanes[key]
        return fresh

    def wake_all(self) -> None:
        """Look at every lane at the next chance: something came, we do not know where."""
        now = self._now()
        for lane in self._lanes.values():
            lane.next_look, lane.looks = now, 0

    def sweep(self) -> None:
        """Start every lane over: the rare full look, once for the fleet."""
        for lane in self._lanes.values():
            lane.due, lane.after = START, ZERO

    def next_look(self) -> float | None:
        """Seconds until some lane is worth a look; None without lanes."""
        if not self._lanes:
            return None
        return max(0.0, min(lane.next_look for lane in self._lanes.values()) - self._now())

    def choose(self, slots: int, blocked: Callable[[Lane], bool]) -> tuple[int, list[Lane]] | None:
        """The next tenant and its lanes to claim from, most urgent class first, least served tenant first.

        Every sixteenth round starts with the lowest class, so that it keeps moving under any load above it.
        """
        if slots <= 0:
            return None
        now = self._now()
        self._round += 1
        sign = -1 if self._round % 16 == 0 else 1
        best: tuple[float, float] | None = None
        chosen: list[Lane] = []
        for lane in self._lanes.values():
            if lane.next_look > now or blocked(lane):
                continue
            rank = (sign * lane.priority, self._standing(lane.tenant))
            if best is None or rank < best:
                best, chosen = rank, [lane]
            elif rank == best and chosen[0].tenant == lane.tenant:
                chosen.append(lane)
        if not chosen:
            return None
        # The longest waiting first, so that a long tail of lanes takes turns.
        chosen.sort(key=lambda lane: lane.next_look)
        return chosen[0].tenant, chosen[: min(LANES_A_CLAIM, max(slots, 1))]

    def claims(self, lanes: list[Lane], slots: int, traced: Callable[[Lane], bool]) -> list[Claim]:
        """What to claim from the chosen lanes: shares of the free slots, from their heads."""
        now, share = self._now(), max(1, slots // len(lanes))
        result = []
        for lane in lanes:
            due, after = lane.due, lane.after
            if due > START and now - lane.looked_back_at >= LOOK_BACK_EVERY:
                lane.looked_back_at = now
                due, after = due - LOOK_BACK, ZERO
            result.append(Claim(lane.id, due, after, share, traced(lane)))
        return result

    def claimed(self, lanes: list[Lane], claims: list[Claim], leases: list[Lease]) -> None:
        """Learn what came: heads move on, lanes that gave less than asked pause, an empty claim keeps its head."""
        now = self._now()
        counts: dict[int, int] = {}
        for lease in leases:
            counts[lease.lane] = counts.get(lease.lane, 0) + 1
            lane = self._lanes.get((lease.tenant, lease.lane))
            if lane is not None and (lease.due_at, lease.id) > (lane.due, lane.after):
                lane.due, lane.after = lease.due_at, lease.id
        for lane, claim in zip(lanes, claims, strict=True):
            got = counts.get(lane.id, 0)
            if got:
                lane.quiet_since = now
            if got >= claim.limit:
                self._wake(lane, now)
            else:
                lane.looks = 0 if got else lane.looks + 1
                lane.next_look = now + min(FIRST_PAUSE * 2 ** min(lane.looks, 10), LONGEST_PAUSE)
        if leases:
            tenant = leases[0].tenant
            self._served_now = self._standing(tenant)
            self._served[tenant] = self._served_now + len(leases)

    def _standing(self, tenant: int) -> float:
        """What a tenant had so far. Who was away does not come back with a credit for all that time."""
        return max(self._served.get(tenant, 0.0), self._served_now)

    def quiet(self) -> dict[int, list[Lane]]:
        """Lanes that were empty long enough to go idle, by tenant."""
        now, result = self._now(), dict[int, list[Lane]]()
        for lane in self._lanes.values():
            if now - lane.quiet_since >= QUIET_SECONDS:
                lane.quiet_since = now  # asked once; asked again after another quiet time
                result.setdefault(lane.tenant, []).append(lane)
        return result

    @staticmethod
    def _wake(lane: Lane, now: float) -> None:
        lane.next_look, lane.looks = now, 0
