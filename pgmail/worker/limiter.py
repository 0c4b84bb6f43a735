"""What this worker may send by the limits of the fleet: tokens for messages, permits for connections.

A token is a moment: the fleet's bucket hands out the next free ones, for half a second at most, each with its
own time, so that the mail of all workers together leaves evenly and no burst was saved up. A token that its
mail missed lapses, and the mail waits for another one. Permits are so many mails of a site or relay on the
wire at once; they are shared out once a second between the workers that want them.

What can go wrong: the database is away. Then no token comes, and permits stay as they were for as long as this
worker counts as alive; one that is declared dead has stopped sending before others get its permits.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from pgmail.store import limits as store

if TYPE_CHECKING:
    from pgmail.store.database import Database
    from pgmail.store.limits import Key, LimitRow
    from pgmail.worker.outbox import Gate, Outbox

CHUNK_SECONDS = 0.5  # of tokens are asked for at a time
LEAST_WAIT, MOST_WAIT = 0.02, 5.0  # seconds until an exhausted limit is asked again
SHARE_SECONDS = 1.0  # between two looks at permits
UNUSED_SECONDS = 5.0  # after which a worker wants no permits of a key any more
STEPPED_SECONDS = 10.0  # no answer takes that long: the database's clock was set
COMPARED_SECONDS = 30.0  # for which a comparison of clocks is believed, and once more
AHEAD = 2  # mails claimed for each permit: the next one is ready when one ends


class Token(NamedTuple):
    """A moment (monotonic) at which one mail may begin, and the last at which it still may."""

    at: float
    until: float


FREE = Token(0.0, 0.0)


class _Rate:
    """The tokens of one limit that this worker holds, the earliest first."""

    __slots__ = ("rate", "ready_at", "tokens")

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.tokens: deque[Token] = deque()
        self.ready_at = 0.0  # not to be asked before

    def stock(self, now: float) -> int:
        """How many tokens are there, those that lapsed thrown away."""
        tokens = self.tokens
        while tokens and tokens[0].until < now:
            tokens.popleft()
        return len(tokens)

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
        self._caps: dict[Key, _Cap] = {}
        self._tenants: dict[int, Key] = {}
        self._shared_at = 0.0
        # Our clock less the database's, at the least: of this half minute, and of the one before.
        self._apart = self._apart_new = math.inf
        self._compared_at = monotonic()

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
                rates[key] = self._rates.get(key) or _Rate(row.rate)
                rates[key].rate = row.rate
            if row.connections is not None:
                caps[key] = self._caps.get(key) or _Cap(self._outbox.gate(key))
        for key, cap in self._caps.items():
            if key not in caps:
                cap.gate.limit = None
                self._outbox.opened(cap.gate)
        self._rates, self._caps, self._tenants = rates, caps, tenants

    def keys(self, tenant: int, relay: str, site: str) -> tuple[Key, ...]:
        """The limits that a mail is under."""
        if not self._rates and not self._caps:
            return ()
        wanted: list[Key] = [("relay", relay), ("site", site)]
        if tenant in self._tenants:
            wanted.append(self._tenants[tenant])
        return tuple(key for key in wanted if key in self._rates or key in self._caps)

    def stopped(self, keys: Sequence[Key]) -> Key | None:
        """The limit that lets nothing more be claimed now: no token until later, or no permit free."""
        for key in keys:
            rate = self._rates.get(key)
            if rate is not None and rate.ready_at > (now := self._now()) and not rate.stock(now):
                return key
            cap = self._caps.get(key)
            if cap is not None and self._room(cap) <= 0:
                cap.starved = True
                cap.used_at = self._now()
                return key
        return None

    def seconds(self, key: Key) -> float:
        """Seconds until it is worth looking at mail under this limit again."""
        rate = self._rates.get(key)
        wait = 0.0 if rate is None else rate.ready_at - self._now()
        return min(MOST_WAIT, max(LEAST_WAIT, wait))

    async def fetch(self, wanted: Mapping[Key, int]) -> None:
        """Ask the fleet for tokens where this worker holds fewer than it wants."""
        now, asks = self._now(), []
        for key, n in wanted.items():
            rate = self._rates.get(key)
            if rate is not None and rate.ready_at <= now:
                short = min(n, rate.chunk) - rate.stock(now)
                if short > 0:
                    asks.append(store.Want(*key, short))
        if not asks:
            return
        for grant in await store.take_tokens(self._database, self._epoch(), asks):
            rate = self._rates.get(grant.key)
            if rate is None:
                continue
            now = self._here(grant.clock)
            # The bucket is a hundredth slower than its rate: so late, a token still breaks no window.
            grace = max(0.01, grant.gap * 0.1)
            for i in range(grant.granted):
                at = now + grant.starts_in + i * grant.gap
                rate.tokens.append(Token(at, at + grace))
            if not grant.granted:
                rate.ready_at = now + max(LEAST_WAIT, grant.wait)

    def _here(self, clock: float) -> float:
        """A moment of the database's clock by this worker's own (monotonic).

        The answer that came fastest tells how far the two are apart: by the slow ones, each worker would be late
        by something else, and together they would send too fast now and then.
        """
        now = self._now()
        if now - self._compared_at > COMPARED_SECONDS:
            self._compared_at, self._apart, self._apart_new = now, self._apart_new, math.inf
        if now - clock > min(self._apart, self._apart_new) + STEPPED_SECONDS:
            self._apart = self._apart_new = math.inf
        self._apart_new = min(self._apart_new, now - clock)
        return clock + min(self._apart, self._apart_new)

    def reserve(
        self, keys: Sequence[Key], most: int, taken: dict[Key, int] | None = None
    ) -> list[Token] | None:
        """Tokens for up to `most` mails under these limits: as many as may be claimed now.

        None where no rate is among them and `most` may be claimed. What is not used must be given `back`.
        `taken` counts what lanes of the same claim reserved before, who are not counted by their gates yet.
        """
        taken = {} if taken is None else taken
        now = self._now()
        rates = [self._rates[key] for key in keys if key in self._rates]
        n = min(
            (
                most,
                *(rate.stock(now) for rate in rates),
                *(self._room(c) - taken.get(key, 0) for key in keys if (c := self._caps.get(key))),
            )
        )
        for key in keys:
            taken[key] = taken.get(key, 0) + max(0, n)
        if not rates:
            return None if n >= most else [FREE] * max(0, n)
        tokens = []
        for _ in range(n):
            each = [rate.tokens.popleft() for rate in rates]
            at = max(token.at for token in each)
            # Under several limits a mail goes by the latest of its moments; the others' tokens wait for it.
            tokens.append(Token(at, max(at, min(max(token.until, at + 0.01) for token in each))))
        return tokens

    def back(self, keys: Sequence[Key], tokens: Sequence[Token]) -> None:
        """Tokens for which no mail was there: the next lane may have one."""
        for key in keys:
            rate = self._rates.get(key)
            if rate is not None:
                rate.tokens.extendleft(reversed([token for token in tokens if token.at]))

    def gates(self, keys: Sequence[Key]) -> tuple[Gate, ...]:
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

    def allowed(self, relay: str) -> int | None:
        """Connections that this worker may hold to a relay; None without a cap."""
        cap = self._caps.get(("relay", relay))
        return None if cap is None else cap.gate.limit

    @staticmethod
    def _room(cap: _Cap) -> int:
        limit = cap.gate.limit
        return MANY if limit is None else limit * AHEAD - cap.gate.claimed


MANY = 100_000  # mails or connections: more than any worker has
