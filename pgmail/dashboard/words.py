"""How figures, moments and states read on pages.

What can go wrong: what is None. Each filter says a dash for it, so that a page never breaks for want of a figure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup

from pgmail.domain.states import State

DASH = "\N{EN DASH}"
_NAME = re.compile(r"[a-z]+(?:_[a-z]+)+")

# The colour that a state is shown in: css has a class `tone-...` for each.
TONES: Mapping[str, str] = {
    State.SCHEDULED: "violet",
    State.QUEUED: "blue",
    State.SENDING: "blue",
    State.DEFERRED: "amber",
    State.HELD: "amber",
    State.SENT: "green",
    State.BOUNCED: "red",
    State.SUPPRESSED: "grey",
    State.EXPIRED: "grey",
    State.CANCELLED: "grey",
    State.DEAD: "red",
    "delivered": "green",
    "opened": "green",
    "clicked": "green",
    "complained": "red",
    "unsubscribed": "amber",
    "failed": "red",
    "in_doubt": "amber",
    "delayed": "amber",
    "paused": "amber",
    "active": "green",
}


def number(value: float | None) -> str:
    """12,345; one decimal below ten where there is one."""
    if value is None:
        return DASH
    if value and abs(value) < 10 and value != int(value):
        return f"{value:.1f}"
    return f"{round(value):,}"


def compact(value: float | None) -> str:
    """12.3k, 4.5M: for axes and narrow places."""
    if value is None:
        return DASH
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.1f}".removesuffix(".0") + unit
    return f"{value:.1f}".removesuffix(".0") if abs(value) < 10 else f"{value:.0f}"


def percent(value: float | None) -> str:
    """A part of one as 12.3%."""
    if value is None:
        return DASH
    return f"{value * 100:.1f}".removesuffix(".0") + "%"


def ms(value: float | None) -> str:
    """Milliseconds as people read them: 34 ms, 1.2 s, 3 min."""
    if value is None:
        return DASH
    return f"{round(value)} ms" if value < 1000 else duration(value / 1000)


def duration(seconds: float | None) -> str:
    """1.2 s, 34 s, 3 min, 5 h, 2 days."""
    if seconds is None:
        return DASH
    if seconds < 10:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    if seconds < 100:
        return f"{round(seconds)} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    if seconds < 36 * 3600:
        return f"{round(seconds / 3600)} h"
    return f"{round(seconds / 86400)} days"


def ago(at: datetime | None, now: datetime | None = None) -> str:
    """Return how far a moment is from now: 3 min ago, in 2 h."""
    if at is None:
        return DASH
    seconds = ((now or datetime.now(UTC)) - at).total_seconds()
    if abs(seconds) < 2:
        return "just now"
    return f"{duration(int(seconds))} ago" if seconds > 0 else f"in {duration(int(-seconds))}"


def moment(at: datetime | None) -> str:
    """2026-05-17 09:41:07 UTC."""
    return DASH if at is None else at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def iso(at: datetime | None) -> str:
    """Return the moment for `<time datetime>`."""
    return "" if at is None else at.astimezone(UTC).isoformat()


def size(octets: int | None) -> str:
    """512 B, 3.4 kB, 1.2 MB."""
    if octets is None:
        return DASH
    if octets < 1000:
        return f"{octets} B"
    return f"{octets / 1000:.1f} kB" if octets < 1_000_000 else f"{octets / 1_000_000:.1f} MB"


def label(word: str) -> str:
    """Return a state or an event type for people: email.in_doubt is In doubt."""
    text = word.removeprefix("email.").replace("_", " ").replace(".", " ")
    return text[:1].upper() + text[1:]


def tone(word: str) -> str:
    """Return the colour of a state or an event type."""
    return TONES.get(word.removeprefix("email."), "grey")


def plural(count: int, one: str, many: str = "") -> str:
    """1 email, 2 emails."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def threshold(value: float | None, unit: str) -> str:
    """What an alert's rule fires above, by its unit: 5%, 15 min, 10 recipients; `any` where nothing is too little."""
    if value is None:
        return DASH
    if value == 0:
        return "any"
    if unit == "seconds":
        return duration(value)
    if unit == "share":
        return percent(value)
    figure = number(value) if value >= 10 else f"{value:g}"
    return (
        f"{figure} {unit.removesuffix('s') if value == 1 and unit != 'times its baseline' else unit}".rstrip()
    )


def rate(count: int, seconds: float) -> str:
    """So many in a time: 50 a second, 100 in 5 min."""
    spans = {1: "a second", 60: "a minute", 3_600: "an hour", 86_400: "a day"}
    return f"{count:,} {spans[int(seconds)] if seconds in spans else f'in {duration(seconds)}'}"


def reason(text: str) -> str:
    """Return why something happened for people: unknown_user: no such box is unknown user: no such box."""
    name, colon, rest = text.partition(":")
    return name.replace("_", " ") + colon + rest if _NAME.fullmatch(name) else text


def parted(address: str) -> Markup:
    """Return an address that a narrow place parts before its @, rather than anywhere."""
    return Markup("<wbr>@").join(address.split("@"))


FILTERS: Mapping[str, Callable[..., Any]] = {
    "number": number,
    "compact": compact,
    "percent": percent,
    "ms": ms,
    "duration": duration,
    "ago": ago,
    "moment": moment,
    "iso": iso,
    "size": size,
    "label": label,
    "tone": tone,
    "plural": plural,
    "threshold": threshold,
    "rate": rate,
    "reason": reason,
    "parted": parted,
}
