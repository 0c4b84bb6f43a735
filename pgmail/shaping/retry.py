"""When a deferred recipient is tried again, and when it is not (RFC 5321, section 4.5.4.1).

Only attempts that the remote answered, or that broke after the mail began, count: `defer` spends an attempt,
`delay` does not (`verdict`). A policy ends by the number of attempts, by the mail's age, or by both.
"""

from __future__ import annotations

import math

import msgspec

from pgmail.shaping.backoff import Random, exponential, jittered


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """The schedule. Raises ValueError when made with values that make no schedule.

    With the defaults, without jitter: 1, 2, 4, 8, 16, 32 minutes, 1 h 4, 2 h 8, then every 4 hours, until
    the mail is 4 days old; RFC 5321 asks for 4 to 5 days.
    """

    base_seconds: float = 60.0  # after the first attempt. Defaults to 60.
    factor: float = 2.0  # each delay is so many times the one before. Defaults to 2.
    cap_seconds: float = 14_400.0  # no delay is longer, before jitter. Defaults to 14400 (4 hours).
    jitter: float = 0.2  # each delay is up to this fraction shorter or longer. Defaults to 0.2.
    max_attempts: int | None = None  # attempts in all, the first included. Defaults to no limit.
    max_age_seconds: float | None = 345_600.0  # since the first attempt. Defaults to 345600 (4 days).

    def __post_init__(self) -> None:
        """Check the values; all faults of one field are one message."""
        if not 0 < self.base_seconds < math.inf:
            raise ValueError("base_seconds: must be greater than 0")
        if not 1 <= self.factor < math.inf:
            raise ValueError("factor: must be at least 1")
        if not self.base_seconds <= self.cap_seconds < math.inf:
            raise ValueError("cap_seconds: must not be less than base_seconds")
        if not 0 <= self.jitter <= 1:
            raise ValueError("jitter: must be from 0 to 1")
        if self.max_attempts is not None and self.max_attempts < 1:
            raise ValueError("max_attempts: must be at least 1")
        if self.max_age_seconds is not None and not self.max_age_seconds > 0:
            raise ValueError("max_age_seconds: must be greater than 0")
        if self.max_attempts is None and self.max_age_seconds is None:
            raise ValueError("max_attempts: must be set where max_age_seconds is not; a retry has to end")


def next_delay(
    policy: RetryPolicy, attempt: int, random: Random, *, age_seconds: float = 0.0
) -> float | None:
    """Return the seconds from now to the next attempt, or None when there is none.

    `attempt`: how many were spent, 1 after the first; ValueError below 1. `random`: see `Random`.
    `age_seconds`: how long ago the mail became due. A delay that would end past the maximum age is shortened
    to end at it, so that the last attempt is as late as was promised; after that one there is no other.
    """
    if attempt < 1:
        raise ValueError(f"attempt: counts from 1, not {attempt}")
    if policy.max_attempts is not None and attempt >= policy.max_attempts:
        return None
    seconds = exponential(policy.base_seconds, policy.factor, policy.cap_seconds, attempt - 1)
    seconds = jittered(seconds, policy.jitter, random)
    if policy.max_age_seconds is not None:
        left = policy.max_age_seconds - age_seconds
        if left <= 0:
            return None
        seconds = min(seconds, left)
    return seconds
