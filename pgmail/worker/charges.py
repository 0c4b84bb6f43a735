"""What templates cost the event loop, charged by the millisecond to whoever wrote them.

Every mail of a process is made in one loop, so that each render keeps all others waiting. One of fifty milliseconds
is within its bounds, and a hundred of them are five seconds of everybody's time. So renders that take more than
`SLOW` are paid for: each tenant has an allowance, all tenants together have another, both a small part of the loop,
and what came in short of it may be used at once. Who has used his up has his slow templates made in a process
apart; those known to be quick stay here, and one that was not seen before is tried within tight bounds.

Measured is the processor's time, not the clock's: a busy machine makes no template slow.

What can go wrong: a template that is quick for most recipients and slow for some counts as its mean; what it costs
is paid for all the same. Memory is bounded: what is forgotten is measured again.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable

SLOW = 0.004
"""Seconds of one render from which on it is paid for."""
BURST, RATE = 0.25, 0.05
"""Of a tenant: seconds of slow renders at once, and in each second after that."""
ALL_BURST, ALL_RATE = 0.5, 0.15
"""Of all tenants together."""
DEEP = -0.75
"""Seconds of debt from which on nothing unknown is tried here, unless it is plain."""
MOST_DEBT = -1.0
WEIGHT = 0.25  # of the latest render in a template's mean
KNOWN_TEMPLATES, KNOWN_TENANTS = 10_000, 10_000

HERE, BRIEFLY, APART = range(3)
"""Where a mail is made: here, here within tight bounds, in a process apart."""


class _Allowance:
    """Seconds that may be used: `rate` more each second, `burst` at most."""

    __slots__ = ("_at", "_burst", "_rate", "_seconds")

    def __init__(self, burst: float, rate: float, now: float) -> None:
        self._burst, self._rate = burst, rate
        self._seconds, self._at = burst, now

    def left(self, now: float) -> float:
        self._seconds = min(self._burst, self._seconds + (now - self._at) * self._rate)
        self._at = now
        return self._seconds

    def use(self, seconds: float, now: float) -> None:
        self._seconds = max(MOST_DEBT, self.left(now) - seconds)


class Charges:
    """The accounts of one worker process; templates by a key of the caller's."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._now = monotonic
        self._all = _Allowance(ALL_BURST, ALL_RATE, monotonic())
        self._tenants: OrderedDict[int, _Allowance] = OrderedDict()
        self._means: OrderedDict[Hashable, float] = OrderedDict()  # seconds of a render

    def way(self, tenant: int, template: Hashable, *, plain: bool = False) -> int:
        """Where the next mail of a template is made: `HERE`, `BRIEFLY` or `APART`.

        `plain` is one without loops and other blocks: most are quick, and one that is not is stopped soon.
        """
        own = self._tenants.get(tenant)
        if own is None:
            return HERE  # a tenant without slow renders uses nothing of what all have
        now = self._now()
        left = min(own.left(now), self._all.left(now))
        if left > 0:
            return HERE
        mean = self._means.get(template)
        if mean is None:
            return BRIEFLY if plain or left > DEEP else APART
        return HERE if mean < SLOW else APART

    def charge(self, tenant: int, template: Hashable, seconds: float) -> None:
        """So long a render took, whatever came of it."""
        mean = self._means.get(template)
        self._means[template] = seconds if mean is None else mean + (seconds - mean) * WEIGHT
        if mean is None and len(self._means) > KNOWN_TEMPLATES:
            self._means.popitem(last=False)
        self.charge_tenant(tenant, seconds)

    def charge_tenant(self, tenant: int, seconds: float) -> None:
        """So long something took that says nothing of a template's later renders: it was compiled."""
        if seconds < SLOW:
            return
        now = self._now()
        own = self._tenants.get(tenant)
        if own is None:
            if len(self._tenants) >= KNOWN_TENANTS:
                self._tenants.popitem(last=False)
            own = self._tenants[tenant] = _Allowance(BURST, RATE, now)
        own.use(seconds, now)
        self._all.use(seconds, now)
