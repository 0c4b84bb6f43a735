"""How long a server asked us to wait: "try again in 5 minutes", "come back in 00:05:00".

Read from words, since SMTP has no field for it. What can go wrong: a number that is something else (a count, an
address, an id). So it must follow a word of coming back, closely, and be followed by a unit of time; and whatever
it says, no more than a day of it is honoured.
"""

from __future__ import annotations

import re

from pgmail.domain.replies import fold

MOST_SECONDS = 86_400.0

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_ONE = r"[0-9]{1,6} ?(?:seconds?|secs?|s|minutes?|mins?|m|hours?|hrs?|h|days?)(?:\(s\))?(?![a-z])"
_CLOCK = r"[0-9]{1,2}:[0-9]{2}:[0-9]{2}"
_ASKED = re.compile(
    r"(?:again|back|retry|retries|retrying|wait|re-?send|reconnect|later|gr[ea]y-?list[a-z]*|deferred|delayed|throttled|"
    r"blocked|limited|expires?|penalty)"
    rf"[^0-9;=/]{{0,40}}?((?:{_ONE}(?:,? (?:and )?)?)+|{_CLOCK})"
)
_PART = re.compile(r"([0-9]{1,6}) ?([smhd])")


def asked_seconds(text: str) -> float | None:
    """Return the seconds that a reply asks to wait, at most a day; None where it asks for nothing readable."""
    found = _ASKED.search(fold(text))
    if found is None:
        return None
    if ":" in found[1]:
        hours, minutes, seconds = map(int, found[1].split(":"))
        total = hours * 3600 + minutes * 60 + seconds
    else:
        total = sum(int(number) * _UNITS[unit] for number, unit in _PART.findall(found[1]))
    return min(float(total), MOST_SECONDS) or None
