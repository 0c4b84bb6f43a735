"""Mail that has to wait for something of ours: its lease is given back, and it is due again after a while.

A lease that is given back untried is due at once, and would be claimed again at once. What waits for room that is not
there yet goes by here instead: a delay, told once an hour, that spends no attempt.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from uuid import UUID

from pgmail.store import work
from pgmail.store.database import Database
from pgmail.store.work import Lease


class Delays:
    """Puts leases off. `freed` is told of those that are no longer held."""

    def __init__(
        self, database: Database, epoch: Callable[[], int], freed: Callable[[Collection[UUID]], None]
    ) -> None:
        self._database, self._epoch, self._freed = database, epoch, freed

    async def delay(self, lease: Lease, seconds: float, reason: str) -> bool:
        """Put one off. False where its row is locked by another transaction just now. Raises DatabaseAway."""
        done = await work.delay(
            self._database, lease.tenant, self._epoch(), [lease], seconds=seconds, reason=reason
        )
        self._freed(done)
        return bool(done)
