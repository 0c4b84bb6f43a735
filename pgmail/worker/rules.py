"""What operators have laid down, as this worker knows it: streams, pauses, limits, weights; learnt once a second.

From it comes what stops a lane now, under a key that lanes with the same obstacle share, and whether that is
over. The order in which obstacles are looked at is the order in which `pgmail why` names them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Hashable
from typing import NamedTuple

from pgmail.domain.sites import TEST_SITE
from pgmail.store import limits as limit_store
from pgmail.store import work
from pgmail.store.database import Database
from pgmail.store.limits import PauseRow
from pgmail.store.work import StreamRow
from pgmail.worker.lanes import Lane, LaneBook
from pgmail.worker.limiter import Limiter
from pgmail.worker.relays import Relays
from pgmail.worker.staging import TEST_RELAY

LEARN_SECONDS = 1.0
FREED_AT_ONCE = 200  # lanes of an exhausted limit that look again when a token comes


class Restored(NamedTuple):
    """All lanes, while acknowledged work is missing from the database and nobody has decided what went out."""

    scope: str = "fleet"


class Paused(NamedTuple):
    """Lanes that stand still by an operator's wish."""

    tenant: int | None
    scope: str
    name: str


class RelaysAway(NamedTuple):
    """Lanes of a stream of which no relay can be used."""

    tenant: int
    stream: str


class SealedElsewhere(NamedTuple):
    """Lanes of a stream that seals, of a tenant whose key other workers have, and this one has not."""

    tenant: int
    stream: str
    sealed: bool = True  # else it would equal the key of relays that are away


class Rules:
    """Streams, pauses, limits and weights. `learn` raises DatabaseAway."""

    def __init__(
        self,
        database: Database,
        relays: Relays,
        limiter: Limiter,
        clear: Callable[[], bool] = lambda: True,
        *,
        receiver: str = "",
        keys: Collection[str] = (),
    ) -> None:
        """`clear` tells whether the database was found whole, so that its mail may be sent.

        `receiver` is the domain that all mail goes to, if a setting redirects it: its limits count. `keys` names
        the key-encryption keys that this worker opens sealed mail with.
        """
        self._keys = keys
        self._elsewhere: frozenset[int] = frozenset()  # tenants whose sealed mail others can open
        self._receiver = receiver
        self._database, self._relays, self._limiter, self._clear = database, relays, limiter, clear
        self._streams: dict[tuple[int, str], StreamRow] = {}
        self._pauses: list[PauseRow] = []
        self._paused: dict[tuple[int, int], str | None] = {}  # by lane, as looked up since they were learnt
        self._until: dict[Hashable, float] = {}  # of limits: when it is worth looking again (monotonic)
        self._learned_at = -math.inf
        self.weights: dict[int, float] = {}

    async def learn(self, *, now: bool = False) -> bool:
        """Read all of it, once a second. True if it did."""
        at = time.monotonic()
        if not now and at - self._learned_at < LEARN_SECONDS:
            return False
        self._streams = {(row.tenant, row.name): row for row in await work.streams(self._database)}
        self._pauses = await limit_store.pauses(self._database)
        self._paused.clear()
        self._limiter.learn(await limit_store.limits(self._database))
        if self._receiver:
            self._limiter.receiver = await limit_store.site(self._database, self._receiver)
        self.weights = await limit_store.weights(self._database)
        self._elsewhere = await work.sealed_elsewhere(self._database, self._keys)
        await self._relays.learn()
        self._learned_at = at
        return True

    def stream(self, tenant: int, name: str) -> StreamRow:
        """A stream's policy. One that somebody deleted by hand: its mail goes by the defaults."""
        return self._streams.get((tenant, name)) or StreamRow(tenant, name)

    async def policy(self, tenant: int, name: str) -> StreamRow:
        """The same; a stream that is not known yet is read first."""
        key = tenant, name
        if key not in self._streams:
            await self.learn(now=True)
            # One that is not there is not asked for again until all are read anew.
            self._streams.setdefault(key, StreamRow(tenant, name))
        return self._streams[key]

    def knows(self, lane: Lane) -> bool:
        """Whether the lane's stream was read, so that its relay is its own and not the usual one."""
        return (lane.tenant, lane.stream) in self._streams

    def traced(self, lane: Lane) -> bool:
        """Whether each claim of this lane is an event."""
        return self.stream(lane.tenant, lane.stream).trace == "full"

    def holds(self, lane: Lane) -> bool:
        """Whether mail of this lane waits for a person where it may have been sent."""
        return self.stream(lane.tenant, lane.stream).on_doubt == "hold"

    def relay(self, lane: Lane) -> str | None:
        """Who carries the lane's next mail; None while no relay can be used."""
        if lane.site == TEST_SITE:
            return TEST_RELAY
        return self._relays.pick(self.stream(lane.tenant, lane.stream))

    @property
    def any_pause(self) -> bool:
        """Whether anything at all is paused."""
        return bool(self._pauses)

    def paused(self, lane: Lane) -> str | None:
        """Which pause a lane stands still by, in words; None if it goes. Cheap: asked for each mail."""
        if not self._pauses:
            return None
        key = lane.tenant, lane.id
        if key not in self._paused:
            self._paused[key] = next(
                (
                    f"{pause.scope} {pause.name} is paused"
                    for pause in self._pauses
                    if pause.stops(lane.tenant, lane.stream, lane.priority, lane.site)
                ),
                None,
            )
        return self._paused[key]

    def stopped(self, lane: Lane) -> Hashable | None:
        """What stops a lane now; None to go."""
        if not self._clear():
            return Restored()
        for pause in self._pauses:
            if pause.stops(lane.tenant, lane.stream, lane.priority, lane.site):
                return Paused(pause.tenant, pause.scope, pause.name)
        if self._elsewhere and self._for_others(lane.tenant, lane.stream):
            return SealedElsewhere(lane.tenant, lane.stream)
        relay = self.relay(lane)
        if relay is None:
            return RelaysAway(lane.tenant, lane.stream)
        key = self._limiter.stopped(self._limiter.keys(lane.tenant, relay, lane.site))
        if key is not None:
            self.park_until(key, self._limiter.seconds(key))
        return key

    def _for_others(self, tenant: int, stream: str) -> bool:
        """Whether a stream's mail is for workers that can open it: here each would be claimed in vain."""
        return tenant in self._elsewhere and self.stream(tenant, stream).seal != "off"

    def free(self, book: LaneBook) -> float | None:
        """Let go the lanes whose obstacle is over. Seconds until the next may be; None if none is by the clock."""
        now, soonest = time.monotonic(), math.inf
        for key in book.parked():
            if isinstance(key, Restored):
                if self._clear():
                    book.free(key)
            elif isinstance(key, Paused):
                if not any((p.tenant, p.scope, p.name) == key for p in self._pauses):
                    book.free(key)
            elif isinstance(key, SealedElsewhere):
                if not self._for_others(key.tenant, key.stream):
                    book.free(key)
            elif isinstance(key, RelaysAway):
                if self._relays.pick(self.stream(*key)) is not None:
                    book.free(key)
            elif self._until.get(key, 0.0) <= now:
                # Not all at once: a limit on a relay stops as many lanes as there are sites.
                book.free(key, FREED_AT_ONCE)
            else:
                soonest = min(soonest, self._until[key] - now)
        return None if soonest == math.inf else soonest

    def park_until(self, key: Hashable, seconds: float) -> None:
        """When it is worth looking at lanes parked under a limit again."""
        self._until[key] = time.monotonic() + seconds
