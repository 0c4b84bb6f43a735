"""Leaves a site alone for a while that says again and again that it wants no more now.

Counted are refusals for which a rule says so (blocked, rate-limited), by tenant and site, in this process: five
within a minute pause the site for the tenant, by a row in `pgmail.pause` that all workers read. SQL makes it last a
minute, and longer each time. One stray reply never pauses anything.

What can go wrong: the database is away. Then nothing is paused now, and the next refusals count anew.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import structlog

from pgmail.errors import DatabaseAway
from pgmail.log import without_addresses
from pgmail.shaping.verdict import Verdict
from pgmail.store import limits
from pgmail.store.database import Database

_log = structlog.get_logger()

SEVERAL = 5  # refusals
WITHIN_SECONDS = 60.0
MOST_KEPT = 10_000  # tenants and sites that are counted at once
ALERT_SECONDS = 60.0  # the same alert not more often


class Slowing:
    """Counts refusals; one for a process."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.monotonic) -> None:
        self._database, self._clock = database, clock
        self._seen: dict[tuple[int, str], deque[float]] = {}
        self._alerted: dict[tuple[str, str], float] = {}

    async def learn(self, tenant: int, site: str, relay: str, verdict: Verdict) -> None:
        """Learn of one refusal; pause the site if it was one too many. Never raises for a database that is away."""
        if verdict.alert:
            self._alert(relay, site, verdict)
        if not verdict.slow:
            return
        now = self._clock()
        if len(self._seen) >= MOST_KEPT:
            self._seen = {key: times for key, times in self._seen.items() if now - times[-1] < WITHIN_SECONDS}
        times = self._seen.setdefault((tenant, site), deque(maxlen=SEVERAL))
        times.append(now)
        if len(times) < SEVERAL or now - times[0] > WITHIN_SECONDS:
            return
        del self._seen[tenant, site]
        said = " ".join(str(x) for x in (verdict.code, verdict.enhanced, verdict.reply) if x)
        reason = f"{verdict.reason}, {SEVERAL} times within a minute, lastly: {without_addresses(said)}"
        try:
            until = await limits.slow_site(self._database, tenant, site, reason)
        except DatabaseAway as error:
            _log.warning("site.not_slowed", tenant=tenant, site=site, error=str(error))
            return
        if until is not None:
            _log.warning("site.slowed", tenant=tenant, site=site, until=until.isoformat(), reason=reason)

    def _alert(self, relay: str, site: str, verdict: Verdict) -> None:
        """Tell a person, once a minute for each relay and reason."""
        now = self._clock()
        key = relay, verdict.reason
        if now - self._alerted.get(key, -ALERT_SECONDS) < ALERT_SECONDS:
            return
        self._alerted[key] = now
        _log.warning(
            "reply.alert", reason=verdict.reason, blame=verdict.blame, relay=relay, site=site, code=verdict.code,
            enhanced=verdict.enhanced, reply=without_addresses(verdict.reply or ""), rule=verdict.rule,
        )  # fmt: skip
