"""Rows 1 to 4 of the law of an email: `from`, `to`, `cc`, `bcc`, `mode`, `reply_to` (ops/docs/email.md).

What can go wrong: the limit on recipients counts *different* addresses, so a list of equal ones is parsed to
its end; the API bounds the body, and parsing is linear in it.
"""

from __future__ import annotations

from typing import Any

from pgmail.domain.address import BIDI, Address, parse, with_name
from pgmail.domain.check_body import items, kind, refuse

MODES = ("envelope", "personal")
MAX_RECIPIENTS = {"envelope": 50, "personal": 1_000}
MAX_REPLY_TO = 50
LISTS = ("to", "cc", "bcc")
_ITEM_KEYS = frozenset({"address", "name", "variables"})


def check_sender(body: dict[str, Any]) -> None:
    """Row 1."""
    sender = body.get("from")
    if sender is None or sender == "":
        refuse("missing_field", "from", because="an email needs a sender, as in Shop <shop@example.com>")
    _address(sender, "from")
    if BIDI.search(sender):
        refuse("invalid_address", "from", because="there is a mark that turns the direction of the text")


def check_recipients(body: dict[str, Any]) -> None:
    """Row 2, but for what depends on the mode."""
    to = body.get("to")
    if to is None or to in ("", []):
        refuse("missing_field", "to", because="an email needs at least one recipient")
    limit = MAX_RECIPIENTS["personal" if body.get("mode") == "personal" else "envelope"]
    different: set[str] = set()
    for key in LISTS:
        value = body.get(key)
        if value is None:
            continue
        for rest, item in items(value):
            different.add(_recipient(item, key, *rest).address)
            if len(different) > limit:
                hint = "" if limit > 50 else '; "mode": "personal" takes 1,000, or send a batch'
                because = f"more than {limit:,} different addresses over to, cc and bcc{hint}"
                refuse("too_many_recipients", "to", because=because)


def check_mode(body: dict[str, Any]) -> None:
    """Row 3."""
    mode = body.get("mode")
    if mode is not None and mode not in MODES:
        refuse("invalid_mode", "mode", because="envelope or personal")
    if mode == "personal":
        for key in ("cc", "bcc"):
            if body.get(key):
                refuse(
                    "invalid_mode",
                    key,
                    because="in personal mode each recipient sees only itself; leave it out",
                )
        return
    for key in LISTS:
        for rest, item in items(body.get(key)):
            if isinstance(item, dict) and item.get("variables") is not None:
                because = 'variables of one recipient need "mode": "personal"'
                refuse("invalid_mode", key, *rest, "variables", because=because)


def check_reply_to(body: dict[str, Any]) -> None:
    """Row 4."""
    value = body.get("reply_to")
    if value is None:
        return
    for rest, item in items(value):
        _address(item, "reply_to", *rest)
    if isinstance(value, list) and len(value) > MAX_REPLY_TO:
        refuse("invalid_address", "reply_to", because=f"{len(value)} addresses; at most {MAX_REPLY_TO}")


def _recipient(item: object, *path: str | int) -> Address:
    """Parse one item of to, cc or bcc."""
    if not isinstance(item, dict):
        return _address(item, *path)
    if unknown := item.keys() - _ITEM_KEYS:
        because = f"a recipient has address, name and variables, not {min(unknown)!r}"
        refuse("invalid_address", *path, because=because)
    address, name = item.get("address"), item.get("name")
    if not isinstance(address, str):
        refuse("invalid_address", *path, because=f"the address is {kind(address)}, not a string")
    if not isinstance(name, str | None):
        refuse("invalid_address", *path, because=f"the name is {kind(name)}, not a string")
    try:
        return with_name(address, name)
    except ValueError as error:
        refuse("invalid_address", *path, because=str(error))


def _address(value: object, *path: str | int) -> Address:
    """Parse one string."""
    if not isinstance(value, str):
        refuse("invalid_address", *path, because=f"an address is a string, not {kind(value)}")
    try:
        return parse(value)
    except ValueError as error:
        refuse("invalid_address", *path, because=str(error))
