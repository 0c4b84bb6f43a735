"""Figures added up from roll-ups: counts by kind, how long mail took, and the steps of time that they are of."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

_BOUNCES = ("bounced_hard", "bounced_soft", "bounced_block", "bounced_other")
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


class Cell:
    """Figures added up: counts by kind, and sent mail by the bucket of its time to accept."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.took: Counter[int] = Counter()

    def add(self, kind: str, bucket: int, n: int) -> None:
        """Add one row of a roll-up: `n` of a kind, or for `took` of a bucket."""
        if kind == "took":
            self.took[bucket] += n
        else:
            self.counts[kind] += n

    def include(self, other: Cell) -> None:
        """Add what another one holds."""
        self.counts.update(other.counts)
        self.took.update(other.took)

    def bounced(self) -> int:
        """How many bounced, of all classes."""
        return sum(self.counts[kind] for kind in _BOUNCES)


def floor(at: datetime, seconds: int) -> datetime:
    """Return when the step of so many seconds began that a moment is in; days and hours are those of UTC."""
    return at - (at - _EPOCH) % timedelta(seconds=seconds)


def ceil(at: datetime, seconds: int) -> datetime:
    """Return when the first step begins that is not before a moment."""
    return at + (_EPOCH - at) % timedelta(seconds=seconds)
