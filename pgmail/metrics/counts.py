"""What hot paths count with: plain integers, an index into a list, names that are bounded. No lock, no label look-up.

They belong to one event loop; a scrape reads them between two steps of it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0,
    21600.0,
)  # fmt: skip
"""Upper bounds of times: from a statement to a night in the queue."""
GROUPS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0)
"""Upper bounds of how many emails went together."""

OTHER = "other"


class Histogram:
    """How often a value fell under each of some bounds, and their sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)  # the last is over all bounds
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value; a bound is in its bucket."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def observe_all(self, values: Sequence[float]) -> None:
        """Count several values; they often fall under one bound."""
        if not values:
            return
        low, high = bisect_left(self.bounds, min(values)), bisect_left(self.bounds, max(values))
        if low == high:
            self.counts[low] += len(values)
        else:
            for value in values:
                self.counts[bisect_left(self.bounds, value)] += 1
        self.total += sum(values)

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.counts)

    def buckets(self) -> list[tuple[str, float]]:
        """Each bound as Prometheus writes it, with how many values are not over it."""
        running, found = 0, []
        for bound, n in zip(self.bounds, self.counts, strict=False):
            running += n
            found.append((f"{bound:g}" if bound % 1 else f"{bound:.1f}", float(running)))
        return [*found, ("+Inf", float(running + self.counts[-1]))]


class Names:
    """Names that may be labels: those given, or the first `most` that come; all others are `other`."""

    __slots__ = ("_most", "_names")

    def __init__(self, names: Collection[str] = (), *, most: int = 0) -> None:
        self._names = {name: name for name in names}
        self._most = most

    def of(self, name: str) -> str:
        """The label of a name."""
        known = self._names.get(name)
        if known is not None:
            return known
        if len(self._names) >= self._most:
            return OTHER
        self._names[name] = name
        return name


class Sample(NamedTuple):
    """One value of a family: its labels in the family's order."""

    family: str
    labels: tuple[str, ...]
    value: float | Histogram


@runtime_checkable
class Source(Protocol):
    """A part of a process that has figures."""

    def samples(self) -> Iterable[Sample]:
        """Tell them, without waiting for anything."""
        ...


@runtime_checkable
class Refreshing(Protocol):
    """A source whose figures have to be fetched before they are told."""

    async def refresh(self) -> None:
        """Fetch them, if those that there are have grown old. Raises nothing: old ones stay."""
        ...
