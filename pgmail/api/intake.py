"""Bodies of emails on their way to the database: the law early, templates compiled, encoded anew.

One email and a batch take the same steps. A moment that has passed is left to SQL where there is a key: only
SQL knows whether this is a repetition of what was right then.

The law is SQL's, which judges every body; judging it here as well costs more than all else that happens to a
body on its way. So a body that has nothing in it but what SQL judges as Python does is left to SQL
(`left_to_sql`), and only if SQL refuses it the law is asked here, for words that say more (`explain`). What comes
with a key that has limits is always judged here, and goes on as it was judged.

What can go wrong: a batch whose bad items are left out would have another body each time that one of them
becomes good, and its idempotency key would clash with itself. So in permissive mode a bad item goes along as
it is, or as a placeholder, that SQL refuses, and keeps its place.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from pgmail.client_bodies import prepared
from pgmail.domain.check import check_email, check_idempotency_key
from pgmail.domain.keylimits import within
from pgmail.errors import Refused
from pgmail.store.keys import Caller

Seal = Callable[[dict[str, Any]], dict[str, Any]]

MAX_BATCH = 1_000
MAX_DEPTH = 20  # of what is left to SQL

_encode = msgspec.json.encode
_PEOPLE = frozenset({"from", "to", "cc", "bcc", "reply_to"})
_WORDS = frozenset(
    {"subject", "text", "html", "stream", "priority", "on_limit", "idempotency_key", "traceparent"}
)
_OBJECTS = frozenset({"template", "tags", "metadata", "headers"})


class Ready(NamedTuple):
    """One email as SQL takes it: JSON, and its idempotency key."""

    json: str
    key: str | None


class ReadyBatch(NamedTuple):
    """Emails as SQL takes them: a JSON array. `keyed`: there is an idempotency key. `faults`: by position."""

    json: str
    keyed: bool
    faults: dict[int, Refused]


def ready_email(
    body: Any,
    key: str | None,
    now: datetime,
    *,
    plain: bool = False,
    seal: Seal | None = None,
    caller: Caller | None = None,
) -> Ready:
    """Make one email ready; `key` is that of the header, `plain` as in `bodies.Body`, `caller` who sends it.

    `seal` adds the sealed form where the email's stream wants it. Raises Refused with the first fault of the law,
    unless the body is left to SQL, and for what the caller's key may not send (403).
    """
    bound = caller if caller is not None and caller.restricted else None
    if bound is not None and bound.test:
        body = as_test(body)
    if key is not None and isinstance(body, dict):
        own = body.get("idempotency_key")
        if own is not None and own != key:
            check_email(body, now=now)
            because = "the header Idempotency-Key says something else"
            raise Refused("invalid_idempotency_key", "/idempotency_key", because)
        body = {**body, "idempotency_key": key}
    if bound is not None:
        checked = _bounded(prepared(body, now, keyed=key is not None), bound)
    else:
        checked = body if plain and left_to_sql(body) else prepared(body, now, keyed=key is not None)
    ready = checked if seal is None else seal(checked)
    return Ready(_encode(ready).decode(), checked.get("idempotency_key"))


def ready_batch(
    body: Any,
    key: str | None,
    now: datetime,
    *,
    strict: bool,
    plain: bool = False,
    seal: Seal | None = None,
    caller: Caller | None = None,
) -> ReadyBatch:
    """Make a batch ready; `key` is the whole batch's, the rest as for one email.

    Raises Refused, in strict mode for the first bad item among those that are not left to SQL.
    """
    bound = caller if caller is not None and caller.restricted else None
    if not isinstance(body, list) or not body:
        raise Refused("invalid_body", "", f"a batch is an array of 1 to {MAX_BATCH:,} emails")
    if len(body) > MAX_BATCH:
        raise Refused("batch_too_large", "", f"{len(body):,} emails; at most {MAX_BATCH:,} at once", 413)
    check_idempotency_key(key)
    items: list[Any] = []
    faults: dict[int, Refused] = {}
    keyed = key is not None
    for position, item in enumerate(body):
        if bound is None and plain and left_to_sql(item):
            items.append(item if seal is None else seal(item))
            keyed = keyed or "idempotency_key" in item
            continue
        try:
            if bound is None:
                checked = prepared(item, now, keyed=key is not None)
            else:
                given = as_test(item) if bound.test else item
                checked = _bounded(prepared(given, now, keyed=key is not None), bound)
            items.append(checked if seal is None else seal(checked))
            keyed = keyed or item.get("idempotency_key") is not None
        except Refused as fault:
            if strict:
                where = f"/{position}{fault.field}"
                raise Refused(fault.code, where, fault.message, fault.status) from None
            faults[position] = fault
            items.append(f"{fault.code} {fault.field}")
    return ReadyBatch(_encode(items).decode(), keyed, faults)


def left_to_sql(body: Any) -> bool:
    """Tell whether a plain body holds nothing that SQL does not judge just as well, and can store.

    Not so: moments, which may be English; texts that are templates themselves, which SQL cannot compile;
    files, which may come as arrays of octets; domains that are not ASCII, of which SQL knows less.
    """
    if type(body) is not dict:
        return False
    for key, value in body.items():
        if key in _PEOPLE:
            if not (_plain_address(value) if type(value) is str else _plain_addresses(value)):
                return False
        elif key in _WORDS:
            if type(value) is not str:
                return False
        elif key not in _OBJECTS or not _storable(value, MAX_DEPTH):
            return False
    return True


def explain(fault: Refused, body: Any, key: str | None, now: datetime) -> Refused:
    """Return what the law here says of an email that SQL refused; if it knows nothing, what SQL said."""
    try:
        prepared(body, now, keyed=key is not None)
        check_idempotency_key(key)
    except Refused as early:
        return early
    return fault


def as_test(body: Any) -> Any:
    """Return a body marked as a test, whatever it says of that itself; what is no object is left to the law."""
    return {**body, "test": True} if isinstance(body, dict) else body


def _bounded(checked: dict[str, Any], caller: Caller) -> dict[str, Any]:
    return within(checked, caller.streams, caller.from_domains)


def _plain_addresses(value: Any) -> bool:
    return type(value) is list and all(type(item) is str and _plain_address(item) for item in value)


def _plain_address(text: str) -> bool:
    """Whether the address in `Name <addr@domain>` is ASCII; the name may be anything."""
    return text.isascii() or text.rpartition("<")[2].isascii()


def _storable(value: Any, depth: int) -> bool:
    """Whether jsonb can hold a value, whose strings are known to be Unicode."""
    kind = type(value)
    if kind is str or kind is int or kind is bool or value is None:
        return True
    if kind is float:
        finite: bool = value - value == 0
        return finite
    if depth == 0:
        return False
    if kind is dict:
        return all(_storable(item, depth - 1) for item in value.values())
    return kind is list and all(_storable(item, depth - 1) for item in value)
