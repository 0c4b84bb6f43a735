"""Exponential waiting: how long after the n-th failure, with jitter so that many do not come back at once."""

from __future__ import annotations

from collections.abc import Callable

Random = Callable[[], float]
"""Gives a number from 0 up to but not including 1, like `random.random`."""


def exponential(base: float, factor: float, cap: float, step: int) -> float:
    """Return `base * factor ** step`, at most `cap`. `step` from 0; any size of it is fine."""
    try:
        return min(cap, base * factor**step)
    except OverflowError:
        return cap


def jittered(seconds: float, jitter: float, random: Random) -> float:
    """Spread `seconds` evenly over `seconds * (1 - jitter)` to `seconds * (1 + jitter)`."""
    return seconds * (1.0 + jitter * (2.0 * random() - 1.0)) if jitter else seconds


class Backoff:
    """Counts failures in a row. For reconnects: `next()` after each failure, `reset()` after a success."""

    def __init__(
        self,
        random: Random,
        *,
        base: float = 1.0,
        factor: float = 2.0,
        cap: float = 60.0,
        jitter: float = 0.2,
    ) -> None:
        """`base` and `cap` in seconds; `jitter` 0 to 1, applied after the cap."""
        if base <= 0 or factor < 1 or cap < base or not 0 <= jitter <= 1:
            raise ValueError("backoff: needs 0 < base <= cap, factor >= 1 and jitter from 0 to 1")
        self._random = random
        self._base = base
        self._factor = factor
        self._cap = cap
        self._jitter = jitter
        self.failures = 0

    def next(self) -> float:
        """Count a failure and return the seconds to wait after it."""
        seconds = exponential(self._base, self._factor, self._cap, self.failures)
        self.failures += 1
        return jittered(seconds, self._jitter, self._random)

    def reset(self) -> None:
        """Start over after a success."""
        self.failures = 0
