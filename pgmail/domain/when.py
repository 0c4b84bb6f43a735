"""Moments as senders write them: ISO 8601 with an offset, or a few English phrases.

The phrases are those that Resend documents ("in 1 min", "tomorrow at 9am") and their near kin. They are read
in UTC; a phrase may say `UTC`, `Z`, `GMT` or a numeric offset, and any other zone is refused rather than
guessed.

What can go wrong: a time of day without a day, or without am/pm, means different things to different people.
What is not listed in `ACCEPTED` is refused with that list.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone, tzinfo

ACCEPTED = (
    "an ISO 8601 time with an offset (2026-11-21T09:00:00Z), "
    'or "in 5 minutes", "in 2 hours", "tomorrow at 9am", "today at 17:30", "next monday at 10:15" (UTC)'
)
ACCEPTED_PAST = (
    "an ISO 8601 time with an offset (2026-11-21T09:00:00Z) or a date (2026-11-21), "
    '"2 hours ago", "90m", "24h", "7d", "now", "today" or "yesterday" (UTC)'
)
MAX_TEXT = 100  # characters

_ISO = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)(?:[T ](\d\d):(\d\d)(?::(\d\d)(?:[.,](\d{1,9}))?)?)?(Z|[+-]\d\d(?::?\d\d)?)?",
    re.ASCII | re.IGNORECASE,
)
_DAY = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_AGO = re.compile(r"(\d{1,9}|an?) ?([a-z]+)( ago)?", re.ASCII)
_IN = re.compile(r"in (\d{1,9}|an?) ([a-z]+)", re.ASCII)
_TIME = r"(?P<time>noon|midnight|(?P<hour>\d{1,2})(?::(?P<minute>\d\d))? ?(?P<half>am|pm|a\.m\.|p\.m\.)?)"
_ON = re.compile(
    rf"(?P<next>next |this |on )?(?P<day>[a-z]+)(?: at| )?(?: ?{_TIME}(?: ?(?P<zone>\S{{1,20}}))?)?", re.ASCII
)

_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_UNITS: dict[str, int] = {  # seconds
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), 3600),
    **dict.fromkeys(("d", "day", "days"), 86_400),
    **dict.fromkeys(("w", "week", "weeks"), 604_800),
}
# Further than any email may be scheduled, and near enough that no date overflows.
_FAR = 10 * 366 * 86_400


def parse(text: str, now: datetime) -> datetime:
    """Return the aware UTC moment that `text` names, seen from the aware `now`.

    A day without a time of day means the time of day of `now`. `friday` is today if that is a Friday and the
    time is still to come; `next friday` is never today. Raises ValueError, whose text names the accepted
    formats.
    """
    if len(text) > MAX_TEXT:
        raise ValueError(f"longer than {MAX_TEXT} characters; write {ACCEPTED}")
    words = text.strip(" ")
    if words[:4].isdigit():
        return parse_iso(words)
    moment = _phrase(re.sub(" +", " ", words.lower()), now.astimezone(UTC))
    if moment is None:
        raise ValueError(f"not a time that pgmail reads; write {ACCEPTED}")
    return moment


def parse_past(text: str, now: datetime) -> datetime:
    """Return the aware UTC moment that `text` names, looking back from the aware `now`, as reports are asked for.

    A day means its beginning. Raises ValueError, whose text names the accepted formats.
    """
    words = re.sub(" +", " ", text.strip(" ").lower())
    today = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if (days := {"today": 0, "yesterday": 1}.get(words)) is not None:
        return today - timedelta(days=days)
    if words == "now":
        return now
    if match := _AGO.fullmatch(words):
        count, unit, ago = match.groups()
        seconds, number = _UNITS.get(unit), 1 if count.startswith("a") else int(count)
        if seconds is not None and (ago or count.isdigit()):
            return now - timedelta(seconds=min(number * seconds, _FAR))
    try:
        if _DAY.fullmatch(words):
            return datetime.fromisoformat(words).replace(tzinfo=UTC)
        if words[:4].isdigit():
            return parse_iso(text.strip(" "))
    except ValueError as error:
        said = str(error).partition("; write ")[0]
        raise ValueError(f"{said}; write {ACCEPTED_PAST}") from None
    raise ValueError(f"not a time that pgmail reads; write {ACCEPTED_PAST}")


def parse_iso(text: str) -> datetime:
    """Return the aware UTC moment of an ISO 8601 text with date, time and offset.

    Raises ValueError, whose text names the accepted formats; a time without an offset is refused, since the
    reader's zone is not the writer's.
    """
    match = _ISO.fullmatch(text) if len(text) <= MAX_TEXT else None
    if match is None:
        raise ValueError(f"not an ISO 8601 time; write {ACCEPTED}")
    year, month, day, hour, minute, second, fraction, offset = match.groups()
    if hour is None:
        raise ValueError(f"a date without a time of day; write {ACCEPTED}")
    if offset is None:
        raise ValueError(f"a time without an offset from UTC; write {ACCEPTED}")
    zone = _offset(offset)
    try:
        return datetime(
            int(year),
            int(month),
            int(day),
            int(hour),
            int(minute),
            int(second or 0),
            int((fraction or "0")[:6].ljust(6, "0")),
            tzinfo=zone,
        ).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"no such time ({error}); write {ACCEPTED}") from None


def is_iso(text: str) -> bool:
    """Tell whether `text` is an ISO 8601 time that needs no reading of English."""
    return _ISO.fullmatch(text) is not None


def _offset(text: str) -> tzinfo:
    """Return the zone of `Z`, `+02`, `+0200` or `+02:00`."""
    if text in {"Z", "z"}:
        return UTC
    digits = text[1:].replace(":", "").ljust(4, "0")
    hours, minutes = int(digits[:2]), int(digits[2:])
    if hours > 15 or minutes > 59:  # what PostgreSQL reads
        raise ValueError(f"the offset must be under 16 hours; write {ACCEPTED}")
    delta = timedelta(hours=hours, minutes=minutes)
    return timezone(-delta if text[0] == "-" else delta)


def _phrase(words: str, now: datetime) -> datetime | None:
    """Read one phrase, or return None if it is none."""
    if words == "now":
        return now
    if match := _IN.fullmatch(words):
        count, unit = match.groups()
        seconds = _UNITS.get(unit)
        if seconds is None:
            return None
        return now + timedelta(seconds=min((1 if count.startswith("a") else int(count)) * seconds, _FAR))
    if (match := _ON.fullmatch(words)) is None:
        return None
    zone = _zone(match["zone"])
    here = now.astimezone(zone)
    at = here
    if match["time"]:
        clock = _time_of_day(match)
        if clock is None:
            return None
        at = here.replace(hour=clock[0], minute=clock[1], second=0, microsecond=0)
    days = _days(match, here, at)
    return None if days is None else (at + timedelta(days=days)).astimezone(UTC)


def _days(match: re.Match[str], here: datetime, at: datetime) -> int | None:
    """Return how many days after today the named day is, or None if there is no such day."""
    day, which = match["day"], (match["next"] or "").strip()
    if day in {"today", "tomorrow"}:
        return None if which else int(day == "tomorrow")
    if day not in _WEEKDAYS:
        return None
    days = (_WEEKDAYS.index(day) - here.weekday()) % 7
    if days == 0 and (which == "next" or at <= here):
        days = 7
    return days


def _time_of_day(match: re.Match[str]) -> tuple[int, int] | None:
    """Return hour and minute, or None if a number is out of range or ambiguous ("at 9")."""
    if match["time"] in {"noon", "midnight"}:
        return (12, 0) if match["time"] == "noon" else (0, 0)
    hour, minute, half = int(match["hour"]), int(match["minute"] or 0), match["half"]
    if minute > 59:
        return None
    if half:
        return (hour % 12 + (12 if half[0] == "p" else 0), minute) if 1 <= hour <= 12 else None
    return (hour, minute) if match["minute"] and hour <= 23 else None


def _zone(text: str | None) -> tzinfo:
    """Return the zone a phrase names; none means UTC."""
    if text is None or text in {"z", "utc", "gmt"}:
        return UTC
    if re.fullmatch(r"(?:utc|gmt)?[+-]\d\d(?::?\d\d)?", text, re.ASCII):
        return _offset(text.removeprefix("utc").removeprefix("gmt"))
    raise ValueError(f"the time zone {text.upper()!r} is not read; use UTC or an offset, or write {ACCEPTED}")
