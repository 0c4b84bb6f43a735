"""Bodies of emails on their way to the database: the law early, templates compiled, encoded anew.

One email and a batch take the same steps. A moment that has passed is left to SQL where there is a key: only
SQL knows whether this is a repetition of what was right then.

What can go wrong: a batch whose bad items are left out would have another body each time that one of them
becomes good, and its idempotency key would clash with itself. So in permissive mode a bad item goes along as
a placeholder that SQL refuses, and keeps its place.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from pgmail.client_bodies import check_inline
from pgmail.domain.check import check_email, check_idempotency_key
from pgmail.domain.email import prepare
from pgmail.errors import Refused

MAX_BATCH = 1_000

_encode = msgspec.json.encode


class Ready(NamedTuple):
    """Emails as SQL takes them: JSON. `keyed`: there is an idempotency key. `faults`: by position."""

    json: str
    keyed: bool
    faults: dict[int, Refused]


def ready_email(body: Any, key: str | None, now: datetime) -> Ready:
    """Check one email; `key` is that of the header. Raises Refused with the first fault of the law."""
    if key is not None and isinstance(body, dict):
        own = body.get("idempotency_key")
        if own is not None and own != key:
            check_email(body, now=now)
            because = "the header Idempotency-Key says something else"
            raise Refused("invalid_idempotency_key", "/idempotency_key", because)
        body = {**body, "idempotency_key": key}
    checked = _checked(body, now, keyed=key is not None)
    return Ready(_encode(checked).decode(), checked.get("idempotency_key") is not None, {})


def ready_batch(body: Any, key: str | None, now: datetime, *, strict: bool) -> Ready:
    """Check a batch; `key` is the whole batch's. Raises Refused, in strict mode for the first bad item."""
    if not isinstance(body, list) or not body:
        raise Refused("invalid_body", "", f"a batch is an array of 1 to {MAX_BATCH:,} emails")
    if len(body) > MAX_BATCH:
        raise Refused("batch_too_large", "", f"{len(body):,} emails; at most {MAX_BATCH:,} at once", 413)
    check_idempotency_key(key)
    items: list[Any] = []
    faults: dict[int, Refused] = {}
    for position, item in enumerate(body):
        try:
            items.append(_checked(item, now, keyed=key is not None))
        except Refused as fault:
            if strict:
                where = f"/{position}{fault.field}"
                raise Refused(fault.code, where, fault.message, fault.status) from None
            faults[position] = fault
            items.append(f"{fault.code} {fault.field}")
    keyed = key is not None or any(
        isinstance(item, dict) and item.get("idempotency_key") is not None for item in items
    )
    return Ready(_encode(items).decode(), keyed, faults)


def _checked(body: Any, now: datetime, *, keyed: bool) -> dict[str, Any]:
    try:
        check_email(body, now=now)
    except Refused as fault:
        if fault.code != "time_in_past" or not (keyed or body.get("idempotency_key")):
            raise
    check_inline(body)
    return prepare(body, now)
