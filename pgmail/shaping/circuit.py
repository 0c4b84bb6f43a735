"""A relay's circuit breaker: while the relay is away, one probe at a time in place of a storm of mails.

    closed ──delay──> open ──wait over, one caller let through──> probing ──ok──> closed
                       ^                                             │
                       └────────────delay, the wait doubled──────────┘

Mails that were on their way when the circuit opened still report: their failures do not lengthen the wait,
and one success closes the circuit, for the relay is evidently there. A probe whose caller vanished without
a report is replaced after `probe_seconds`. Not safe for threads; one per relay and process.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from pgmail.shaping.backoff import Backoff, Random
from pgmail.shaping.verdict import Verdict

State = Literal["closed", "open", "probing"]


class Circuit:
    """Tells whether a relay may be tried. Starts closed (mail flows)."""

    def __init__(
        self,
        clock: Callable[[], float],
        random: Random,
        *,
        base_seconds: float = 1.0,
        cap_seconds: float = 60.0,
        jitter: float = 0.2,
        probe_seconds: float = 120.0,
    ) -> None:
        """`clock` is monotonic, in seconds. The first wait is `base_seconds`, doubled up to `cap_seconds`."""
        self._clock = clock
        self._backoff = Backoff(random, base=base_seconds, factor=2.0, cap=cap_seconds, jitter=jitter)
        self._probe_seconds = probe_seconds
        self._until = -math.inf  # open: when a probe may go; probing: when the probe is taken for lost
        self.state: State = "closed"
        self.reason: str | None = None
        """Why it is not closed: the verdict's reason."""

    def allow(self) -> bool:
        """Tell whether to try now. An open circuit whose wait is over says yes once: the caller is the probe.

        The probe must lead to `record`, `succeeded` or `failed`.
        """
        if self.state == "closed":
            return True
        if self._clock() < self._until:
            return False
        self.state = "probing"
        self._until = self._clock() + self._probe_seconds
        return True

    def wait_seconds(self) -> float:
        """Return the seconds until `allow` may say yes; 0 if it would now."""
        return 0.0 if self.state == "closed" else max(0.0, self._until - self._clock())

    def record(self, verdict: Verdict) -> None:
        """Learn from a mail: `delay` and `pause_relay` are failures of the relay, any other answer is not.

        `in_doubt` and a `defer` without a reply say nothing about it, unless they are the probe's.
        """
        if verdict.kind in ("delay", "pause_relay"):
            self.failed(verdict.reason)
        elif verdict.code is not None:
            self.succeeded()
        elif self.state == "probing":
            # The probe broke half-way: the relay is there but not well.
            self.failed(verdict.reason)

    def succeeded(self) -> None:
        """Close: the relay answered."""
        self.state = "closed"
        self.reason = None
        self._backoff.reset()

    def failed(self, reason: str) -> None:
        """Open, or open again with a longer wait after a probe."""
        if self.state == "open":
            return
        self.state = "open"
        self.reason = reason
        self._until = self._clock() + self._backoff.next()
