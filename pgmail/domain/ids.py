"""Ids that carry their time: UUID version 7 (RFC 9562, section 5.7).

Tables are partitioned by range of the id, so an id tells which partition holds its row, and a moment gives
the smallest id that could have been made then. PostgreSQL makes almost all ids; Python makes one only where
it must know it before the row exists.

What can go wrong: a UUID of another version has no time in it, and a clock that was wrong makes ids that sort
wrong.
"""

from __future__ import annotations

import secrets
from datetime import UTC, datetime, timedelta
from uuid import UUID

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_VERSION = 0x7 << 76
_VARIANT = 0b10 << 62
_MAX_MS = (1 << 48) - 1


def make(now: datetime) -> UUID:
    """Make an id for the aware time `now`.

    The 12 bits after the version hold the fraction of the millisecond, as PostgreSQL 18 does it (RFC 9562,
    section 6.2, method 3), so ids made microseconds apart sort by time; 62 random bits keep them different.
    """
    ms, rest = _split(now)
    fraction = rest * 4096 // 1000
    return UUID(int=ms << 80 | _VERSION | fraction << 64 | _VARIANT | secrets.randbits(62))


def floor(time: datetime) -> UUID:
    """Return the smallest id of the millisecond of the aware `time`: the lower bound of a range of ids."""
    ms, _ = _split(time)
    return UUID(int=ms << 80 | _VERSION | _VARIANT)


def time_of(id: UUID) -> datetime:
    """Return the aware UTC time in an id, to the millisecond. Raises ValueError for another version."""
    if id.version != 7:
        raise ValueError(f"{id} is not a UUID of version 7; it has no time in it")
    return _EPOCH + timedelta(milliseconds=id.int >> 80)


def _split(time: datetime) -> tuple[int, int]:
    """Return milliseconds since 1970 and the microseconds left over, without going through a float."""
    if time.tzinfo is None:
        raise ValueError("the time of an id must be aware")
    ms, rest = divmod((time - _EPOCH) // _MICROSECOND, 1000)
    if not 0 <= ms <= _MAX_MS:
        raise ValueError("the time of an id must lie in 1970 or later")
    return ms, rest
