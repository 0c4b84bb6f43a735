"""What this worker may send by the limits of the fleet: tokens for messages, permits for connections.

A token is a moment: the fleet's buckets hand out the next free ones, for half a second at most, each with its
own time, so that the mail of all workers together leaves evenly and no burst was saved up. It is for mail
under one set of limits, in all of which it has that moment. A token that its mail missed lapses, and the mail
waits for another one. Permits are so many mails of a site or relay on the
wire at once; they are shared out once a second between the workers that want them.

What can go wrong: the database is away. Then no token comes, and permits stay as they were for as long as this
worker counts as alive; one that is declared dead has stopped sending before others get its permits.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from pgmail.domain.sites import TEST_SITE
from pgmail.store import limits as store

if TYPE_CHECKING:
    from pgmail.store.database import Database
    from pgmail.store.limits import Key, LimitRow
    from pgmail.worker.outbox import Gate, Outbox

Keys = tuple["Key", ...]

CHUNK_SECONDS = 0.5  # of tokens are asked for at a time
LEAST_WAIT, MOST_WAIT = 0.02, 5.0  # seconds until an exhausted limit is asked again
FIRST_LEAD = 0.05  # until it is known how long that takes
LONG_SECONDS = 1.0  # claimed mail waits no longer than that for tokens
SHARE_SECONDS = 1.0  # between two looks at permits
UNUSED_SECONDS = 5.0  # after which a worker wants no permits of a key any more
STEPPED_SECONDS = 10.0  # no answer takes that long: the database's clock was set
COMPARED_SECONDS = 30.0  # for which a comparison of clocks is believed, and once more
COMPARE_EVERY, COMPARISONS = 5.0, 4  # seconds; before the first token so many
GRACE = 2 / 3  # of a limit's margin that a worker may be late; the rest is for clocks and for the way
AHEAD = 2  # mails claimed for each permit: the next one is ready when one ends
# Under a rate as well, one: a mail that waits for a connection misses its token's moment, and the token is lost.
AHEAD_RATED = 1


class Token(NamedTuple):
    """A moment (monotonic) at which one mail may begin, and the last at which it still may."""

    at: float
    until: float


FREE = Token(0.0, 0.0)


class _Rate:
    """A rate: of how many a second, how late a message may be, and when it is worth asking for tokens again."""

    __slots__ = ("margin", "rate", "ready_at")

    def __init__(self, rate: float, margin: float) -> None:
        self.rate, self.margin = rate, margin
        self.ready_at = 0.0

    @property
    def chunk(self) -> int:
        """Tokens for half a second."""
        return max(1, math.ceil(self.rate * CHUNK_SECONDS))


class _Cap:
    """A connection cap as this worker has its part of it: `gate.limit` permits."""

    __slots__ = ("asked_at", "gate", "peak", "starved", "used_at")

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.gate.limit = 0  # until permits were granted
        self.peak = 0  # mails claimed and not over at once since permits were shared last
        self.starved = False  # could have used more since then
        self.used_at = self.asked_at = -math.inf


class Limiter:
    """All limits as this worker knows them. Raises DatabaseAway and FencedOut where it asks the fleet."""

    def __init__(
        self, database: Database, epoch: Callable[[], int], outbox: Outbox, monotonic: Callable[[], float]
    ) -> None:
        self._database, self._epoch, self._outbox, self._now = database, epoch, outbox, monotonic
        self._rates: dict[Key, _Rate] = {}
        self._tokens: dict[Keys, deque[Token]] = {}  # by the rates that they are for, the earliest first
        self._caps: dict[Key, _Cap] = {}
        self._tenants: dict[int, Key] = {}
        self._shared_at = 0.0
        self.receiver: str | None = None  # the site of all mail, where a setting redirects it
        self._lead = FIRST_LEAD  # seconds from asking for tokens to mail that is ready for them
        # Our clock less the database's, at the least: of this half minute, and of the one before.
        self._apart = self._apart_new = math.inf
        self._apart_at, self._compared_at = monotonic(), -math.inf

    def learn(self, rows: Iterable[LimitRow]) -> None:
        """Take the limits as they stand now. A changed rate keeps its tokens: they are half a second's."""
        rates: dict[Key, _Rate] = {}
        caps: dict[Key, _Cap] = {}
        tenants: dict[int, Key] = {}
        for row in rows:
            key = row.key
            if row.tenant is not None:
                tenants[row.tenant] = key
            if row.rate is not None:
                rates[key] = self._rates.get(key) or _Rate(row.rate, row.margin)
                rates[key].rate, rates[key].margin = row.rate, row.margin
            if row.connections is not None:
                caps[key] = self._caps.get(key) or _Cap(self._outbox.gate(key))
        for key, cap in self._caps.items():
            if key not in caps:
                cap.gate.limit = None
                self._outbox.opened(cap.gate)
        self._rates, self._caps, self._tenants = rates, caps, tenants
        now = self._now()
        for under in [under for under in self._tokens if not self._stock(under, now)]:
            del self._tokens[under]

    def keys(self, tenant: int, relay: str, site: str) -> tuple[Key, ...]:
        """The limits that a mail is under."""
        if site == TEST_SITE or not (self._rates or self._caps):
            return ()
        wanted: list[Key] = [("relay", relay), ("site", self.receiver or site)]
        if tenant in self._tenants:
            wanted.append(self._tenants[tenant])
        return tuple(key for key in wanted if key in self._rates or key in self._caps)

    def stopped(self, keys: Keys) -> Key | None:
        """The limit that lets nothing more be claimed now: no token until later, or no permit free."""
        if not keys:
            return None
        now = self._now()
        rated = self._under(keys)
        late = next((key for key in rated if self._rates[key].ready_at > now), None)
        if late is not None and not self._stock(rated, now):
            return late
        for key in keys:
            cap = self._caps.get(key)
            if cap is not None and self._room(cap, rated) <= 0:
                cap.starved = True
                cap.used_at = self._now()
                return key
        return None

    def seconds(self, key: Key) -> float:
        """Seconds until it is worth looking at mail under this limit again."""
        rate = self._rates.get(key)
        wait = 0.0 if rate is None else rate.ready_at - self._now()
        return min(MOST_WAIT, max(LEAST_WAIT, wait))

    async def fetch(self, wanted: Mapping[Keys, int]) -> None:
        """Ask the fleet for tokens for mail under these limits, where this worker holds fewer than it wants."""
        wants: dict[Keys, int] = {}
        for keys, n in wanted.items():
            under = self._under(keys)
            rooms = (self._room(cap, under) for key in keys if (cap := self._caps.get(key)))
            wants[under] = wants.get(under, 0) + min((n, *rooms))
        now, asks = self._now(), []
        for under, n in wants.items():
            rates = [self._rates[key] for key in under]
            if rates and all(rate.ready_at <= now for rate in rates):
                short = min(n, *(rate.chunk for rate in rates)) - self._stock(under, now)
                if short > 0:
                    asks.append(store.Want(under, short))
        if not asks:
            return
        await self._compare()
        for grant in await store.take_tokens(self._database, self._epoch(), asks, self._lead):
            now = self._here(grant.clock)
            grace = GRACE * min(
                (rate.margin for key in grant.keys if (rate := self._rates.get(key))), default=0
            )
            line = self._tokens.setdefault(grant.keys, deque())
            line.extend(Token(now + moment, now + moment + grace) for moment in grant.moments)
            if grant.wanted and not grant.moments and (rate := self._rates.get(grant.short or grant.keys[0])):
                rate.ready_at = now + max(LEAST_WAIT, grant.wait)

    def took(self, seconds: float) -> None:
        """So long it took from asking for tokens until the mail for them was ready: sooner ones would lapse."""
        self._lead = max(seconds * 1.25, self._lead * 0.9)

    async def _compare(self) -> None:
        """Compare clocks, before the first tokens several times: the first answers come late."""
        if self._now() - self._compared_at < COMPARE_EVERY:
            return
        for _ in range(COMPARISONS if self._compared_at == -math.inf else 1):
            self._here(await store.clock(self._database))
        self._compared_at = self._now()

    def _here(self, clock: float) -> float:
        """A moment of the database's clock by this worker's own (monotonic).

        The answer that came fastest tells how far the two are apart: by the slow ones, each worker would be late
        by something else, and together they would send too fast now and then.
        """
        now = self._now()
        if now - self._apart_at > COMPARED_SECONDS:
            self._apart_at, self._apart, self._apart_new = now, self._apart_new, math.inf
        if now - clock > min(self._apart, self._apart_new) + STEPPED_SECONDS:
            self._apart = self._apart_new = math.inf
        self._apart_new = min(self._apart_new, now - clock)
        return clock + min(self._apart, self._apart_new)

    def reserve(self, keys: Keys, most: int, taken: dict[Key, int] | None = None) -> list[Token] | None:
        """Tokens for up to `most` mails under these limits: as many as may be claimed now.

        None where no rate is among them and `most` may be claimed. What is not used must be given `back`.
        `taken` counts what lanes of the same claim reserved before, who are not counted by their gates yet.
        """
        taken = {} if taken is None else taken
        now, under = self._now(), self._under(keys)
        n = min(
            (
                most,
                *((self._stock(under, now),) if under else ()),
                *(self._room(c, under) - taken.get(key, 0) for key in keys if (c := self._caps.get(key))),
            )
        )
        n = max(0, n)
        for key in keys:
            taken[key] = taken.get(key, 0) + n
        if not under:
            return None if n >= most else [FREE] * n
        tokens: list[Token] = []
        for line in self._lines(under):
            while line and len(tokens) < n:
                tokens.append(line.popleft())
        return tokens

    def back(self, keys: Keys, tokens: Iterable[Token]) -> None:
        """Tokens for which no mail was there: the next lane may have one."""
        left = [token for token in tokens if token.at]
        if left:
            under = self._under(keys)
            self._tokens[under] = deque(sorted((*left, *self._tokens.get(under, ()))))

    def _under(self, keys: Keys) -> Keys:
        """Those of the limits that are rates."""
        return tuple(key for key in keys if key in self._rates)

    def _lines(self, under: Keys) -> Iterator[deque[Token]]:
        """The tokens that mail under these rates may use: its own first, then those that are for more rates."""
        own = self._tokens.get(under)
        if own:
            yield own
        for others, line in self._tokens.items():
            if line and len(others) > len(under) and set(under) <= set(others):
                yield line

    def _stock(self, under: Keys, now: float) -> int:
        """How many tokens there are for mail under these rates, those that lapsed thrown away."""
        n = 0
        for line in self._lines(under):
            while line and line[0].until < now:
                line.popleft()
            n += len(line)
        return n

    def gates(self, keys: Keys) -> tuple[Gate, ...]:
        """The gates of a mail that was claimed under these limits; they count it until the outbox lets it go."""
        found = []
        for key in keys:
            cap = self._caps.get(key)
            if cap is not None:
                cap.gate.claimed += 1
                cap.peak = max(cap.peak, cap.gate.claimed)
                cap.used_at = self._now()
                found.append(cap.gate)
        return tuple(found)

    async def share(self) -> bool:
        """Renew this worker's permits, once a second, or at once for what it had none of. True if it asked."""
        now = self._now()
        used = {
            key: cap
            for key, cap in self._caps.items()
            if now - cap.used_at < UNUSED_SECONDS or cap.gate.claimed  # those that wait at it too
        }
        fresh = any(cap.gate.limit == 0 and now - cap.asked_at >= SHARE_SECONDS for cap in used.values())
        if not (fresh or (used and now - self._shared_at >= SHARE_SECONDS)):
            return False
        self._shared_at = now
        shares = [
            store.Share(
                *key, max(cap.gate.busy, cap.gate.limit or 0), MANY if cap.starved else max(1, cap.peak)
            )
            for key, cap in used.items()
        ]
        allowed = await store.share_permits(self._database, self._epoch(), shares)
        for key, cap in self._caps.items():
            cap.asked_at = now if key in used else cap.asked_at
            cap.starved, cap.peak = False, cap.gate.claimed
            limit = allowed.get(key, 0) if key in used else 0
            if cap.gate.limit != limit:
                cap.gate.limit = limit
                self._outbox.opened(cap.gate)
        return True

    def shut(self) -> list[Gate]:
        """Gates that this worker has no permit for now, with mail behind them that others may have."""
        return [
            cap.gate
            for cap in self._caps.values()
            if cap.gate.limit == 0 and cap.gate.claimed > cap.gate.busy
        ]

    def long(self, keys: Keys) -> bool:
        """Tell whether mail under these limits has to wait so long that it is better not claimed meanwhile."""
        if any((cap := self._caps.get(key)) is not None and cap.gate.limit == 0 for key in keys):
            return True
        return any(self.seconds(key) > LONG_SECONDS for key in keys)

    def allowed(self, relay: str) -> int | None:
        """Connections that this worker may hold to a relay; None without a cap."""
        cap = self._caps.get(("relay", relay))
        return None if cap is None else cap.gate.limit

    @staticmethod
    def _room(cap: _Cap, rated: Keys) -> int:
        limit = cap.gate.limit
        return MANY if limit is None else limit * (AHEAD_RATED if rated else AHEAD) - cap.gate.claimed


MANY = 100_000  # mails or connections: more than any worker has
