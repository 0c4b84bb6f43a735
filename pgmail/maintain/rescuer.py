"""Who is dead? Silence is counted over our own successful reads, on our monotonic clock.

A worker is dead when its beat stood still through `silence_seconds` of reads that we made. A read that failed
proves nothing, so after one a full grace passes first: a database that was away for a minute kills nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping


class Watch:
    """Watches beats. Pure but for the clock it is given."""

    def __init__(self, silence_seconds: float, monotonic: Callable[[], float]) -> None:
        self._silence, self._now = silence_seconds, monotonic
        self._seen: dict[int, tuple[int, float]] = {}
        self._read_at: float | None = None

    def saw(self, beats: Mapping[int, int]) -> list[int]:
        """Take one read of all beats; returns the epochs that are dead by now."""
        now = self._now()
        if self._read_at is None or now - self._read_at > self._silence / 2:
            self._seen = {}  # we ourselves were away: everyone gets a full grace
        self._read_at = now
        seen = {}
        for epoch, beat in beats.items():
            before = self._seen.get(epoch)
            seen[epoch] = (beat, now) if before is None or before[0] != beat else before
        self._seen = seen
        return [epoch for epoch, (_, since) in seen.items() if now - since > self._silence]

    def failed(self) -> None:
        """A read failed."""
        self._read_at = None
