"""The law of an email, as far as it needs no database: the rows of ops/docs/email.md in their order.

SQL holds the same law for every way in; checking here first gives the same code and field without a round
trip, and takes the moments that only Python reads ("in 5 minutes"). tests/corpus.json runs through both.

What can go wrong: the two could drift apart. So a body that passes goes to SQL unchanged (but for
`email.prepare`), and what SQL says counts. Left to SQL alone: `unknown_template`, `missing_variable`,
`unknown_asset`, `unknown_stream` for a name that is a string, `idempotency_conflict`, `limit_reached`
and `tenant_suspended`.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Any

from pgmail.domain import check_content, check_people, when
from pgmail.domain.check_attachments import check_attachments
from pgmail.domain.check_body import check_values, kind, refuse

KEYS = (
    *(
        "from",
        "to",
        "cc",
        "bcc",
        "mode",
        "reply_to",
        "template",
        "subject",
        "text",
        "html",
        "variables",
        "headers",
    ),
    *("attachments", "tags", "metadata", "stream", "priority", "scheduled_at", "expires_at", "on_limit"),
    *("idempotency_key", "test", "traceparent"),
)
PRIORITIES = ("high", "normal", "low")
ON_LIMIT = ("delay", "hold", "error")
MAX_OCTETS = 26_214_400  # attachments decoded + text + html + subject
PAST = timedelta(seconds=60)  # a sender's clock may be behind by this much
FUTURE = timedelta(days=366)

_KNOWN = frozenset(KEYS)
_IDEMPOTENCY_KEY = re.compile("[!-~](?:[ -~]{0,254}[!-~])?")


def check_email(body: object, *, now: datetime) -> None:
    """Raise `Refused` for the first fault of a body, in the order of the law; return None if there is none.

    `now` is aware. A key whose value is None is as if absent. The body is not changed.
    """
    if not isinstance(body, dict):
        refuse("invalid_body", because=f"an email is a JSON object, not {kind(body)}")
    check_values(body)
    _check_keys(body)
    check_people.check_sender(body)
    check_people.check_recipients(body)
    check_people.check_mode(body)
    check_people.check_reply_to(body)
    check_content.check_template(body)
    check_content.check_subject(body)
    check_content.check_text(body)
    check_content.check_variables(body)
    check_content.check_headers(body)
    attached = check_attachments(body)
    check_content.check_tags(body)
    check_content.check_metadata(body)
    _check_stream(body)
    _check_word(body, "priority", PRIORITIES)
    scheduled = _check_scheduled(body, now)
    _check_expires(body, now, scheduled)
    _check_word(body, "on_limit", ON_LIMIT)
    check_idempotency_key(body.get("idempotency_key"))
    _check_test(body)
    _check_size(body, attached)


def check_idempotency_key(key: object) -> None:
    """Row 18; over HTTP the key comes in a header and is checked by itself. None is no key."""
    if key is None:
        return
    if not isinstance(key, str) or not _IDEMPOTENCY_KEY.fullmatch(key):
        because = "1 to 256 printable ASCII characters, no space at an end"
        refuse("invalid_idempotency_key", "idempotency_key", because=because)


def _check_keys(body: dict[str, Any]) -> None:
    """Row 0."""
    if unknown := body.keys() - _KNOWN:
        key = min(unknown)
        hint = f"; did you mean {near[0]!r}?" if (near := _near(key)) else ""
        refuse("unknown_key", key, because=f"an email has no such key{hint}")


_ELSEWHERE = {
    "sender": "from",
    "from_": "from",
    "recipient": "to",
    "recipients": "to",
    "send_at": "scheduled_at",
    "at": "scheduled_at",
    "body": "text",
    "body_text": "text",
    "body_html": "html",
    "template_id": "template",
}
"""What a key is called by other ways in (SQL's named arguments, Python's fields) and by other people's APIs."""


def _near(key: str) -> list[str]:
    if known := _ELSEWHERE.get(key.lower()):
        return [known]
    from difflib import get_close_matches  # noqa: PLC0415 - only a fault needs it, and it is slow to load

    return get_close_matches(key[:80].lower(), KEYS, n=1, cutoff=0.6)


def _check_stream(body: dict[str, Any]) -> None:
    """Row 13, but for whether the stream exists."""
    stream = body.get("stream")
    if not isinstance(stream, str | None):
        refuse("unknown_stream", "stream", because=f"the name of a stream, not {kind(stream)}")


def _check_word(body: dict[str, Any], key: str, words: tuple[str, ...]) -> None:
    """Rows 14 and 17."""
    value = body.get(key)
    if value is not None and value not in words:
        refuse(f"invalid_{key}", key, because=f"{', '.join(words[:-1])} or {words[-1]}")


def _check_scheduled(body: dict[str, Any], now: datetime) -> datetime:
    """Row 15. Return when the email is due."""
    value = body.get("scheduled_at")
    if value is None:
        return now
    if not isinstance(value, str):
        refuse("invalid_time", "scheduled_at", because=f"{when.ACCEPTED}, not {kind(value)}")
    try:
        moment = when.parse(value, now)
    except ValueError as error:
        refuse("invalid_time", "scheduled_at", because=str(error))
    if moment < now - PAST:
        refuse("time_in_past", "scheduled_at", because="more than 60 seconds in the past")
    if moment > now + FUTURE:
        refuse("time_too_far", "scheduled_at", because="more than 366 days ahead")
    return max(moment, now)


def _check_expires(body: dict[str, Any], now: datetime, scheduled: datetime) -> None:
    """Row 16."""
    value = body.get("expires_at")
    if value is None:
        return
    if not isinstance(value, str):
        refuse("invalid_time", "expires_at", because=f"an ISO 8601 time with an offset, not {kind(value)}")
    try:
        moment = when.parse_iso(value)
    except ValueError as error:
        refuse("invalid_time", "expires_at", because=str(error))
    if moment <= now:
        refuse("time_in_past", "expires_at", because="it has passed")
    if moment <= scheduled:
        refuse("time_in_past", "expires_at", because="not later than scheduled_at")
    if moment > now + 2 * FUTURE:
        refuse("time_too_far", "expires_at", because="more than 732 days ahead")


def _check_test(body: dict[str, Any]) -> None:
    """Row 18b."""
    test = body.get("test")
    if not isinstance(test, bool | None):
        refuse("invalid_test", "test", because=f"true or false, not {kind(test)}")


def _check_size(body: dict[str, Any], attached: int) -> None:
    """Row 19. By now the three texts are strings or absent."""
    size = attached + sum(len((body.get(key) or "").encode()) for key in ("subject", "text", "html"))
    if size > MAX_OCTETS:
        because = f"{size:,} octets of text and attachments; at most {MAX_OCTETS:,}"
        refuse("too_large", because=because, status=413)
