"""What an answer to a webhook means: told, again later, given up, or not wanted any more.

Any 2xx is success (Standard Webhooks). 410 says that the endpoint is gone. All else, redirects and silence too, is
tried again over about 75 hours; Retry-After (RFC 9110, section 10.2.3) makes it later, never sooner, by a day at most.

What can go wrong: many deliveries that fail together come back together. So each wait is spread by a tenth.
"""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal

import msgspec

from pgmail.shaping.backoff import Random, jittered

_MINUTE, _HOUR = 60.0, 3_600.0
WAITS = (
    *(5.0, 5 * _MINUTE, 30 * _MINUTE),
    *(2 * _HOUR, 5 * _HOUR, 10 * _HOUR, 14 * _HOUR, 20 * _HOUR, 24 * _HOUR),
)
"""Seconds after the first, second, ... failure; after the last of them it is given up."""
JITTER = 0.1
MOST_SECONDS = 24 * _HOUR
_BUSY = frozenset({429, 502, 503, 504})
"""Here Retry-After is about the endpoint, not about this event: all calls to it wait."""
REST_SECONDS = _HOUR


class Verdict(msgspec.Struct, frozen=True):
    """`seconds` until the next attempt, `rest` of the whole endpoint; `gone`: it is to be disabled."""

    outcome: Literal["delivered", "retrying", "failed"]
    seconds: float = 0.0
    rest: float = 0.0
    gone: bool = False


def judge(
    status: int | None, attempt: int, retry_after: str | None, *, now: datetime, random: Random
) -> Verdict:
    """Decide after the `attempt`-th call (from 1). `status` None: no answer. `now` aware, for a date in Retry-After."""
    if status is not None and 200 <= status < 300:
        return Verdict("delivered")
    if status == 410:
        return Verdict("failed", gone=True)
    asked = retry_seconds(retry_after, now)
    rest = min(asked, REST_SECONDS) if status in _BUSY else 0.0
    if attempt > len(WAITS):
        return Verdict("failed", rest=rest)
    return Verdict("retrying", max(jittered(WAITS[attempt - 1], JITTER, random), asked), rest)


def retry_seconds(text: str | None, now: datetime) -> float:
    """Return what Retry-After asks for, in seconds from `now`, a day at most; 0 where it cannot be read."""
    text = (text or "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), MOST_SECONDS)
    try:
        at = parsedate_to_datetime(text)
        seconds = ((at if at.tzinfo else at.replace(tzinfo=UTC)) - now).total_seconds()
    except (ValueError, TypeError, IndexError, OverflowError):
        return 0.0
    return min(max(seconds, 0.0), MOST_SECONDS)
