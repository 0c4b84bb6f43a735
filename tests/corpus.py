"""The corpus: bodies of emails, good and bad, and what every way in answers to each.

`corpus.json` is a list of cases, and `forged` adds each forbidden character in each text of a header. `name` says
the promise. `expect` is "ok" or `{code, field, status}`.
`needs` lists what must stand in the database first; `ways` the ways in that can express the case (default:
all four).

A value in a body may be made by the loader:

    {"$in_seconds": 3600, "offset": "+02:00"}       that moment from now, ISO 8601 (offset: Z)
    {"$repeat": ["x", 999, "before", "after"]}      a string; the last two may be missing
    {"$list": [51, "user{i}@example.org"]}          an array of 51; {i} counts from 0 in strings
    {"$object": [51, "X-H{i}", "v"]}                an object of 51 keys

Needs, which a runner provides (see `NEEDS`):

    template:welcome            a published template, version 1, that requires `name`
    asset:logo                  a stored asset
    suppressed:ADDRESS          the address is on the suppression list
    used_key:KEY                this idempotency key was used by another email
    full_stream:NAME            a stream with max_queued that is reached

Over HTTP a runner moves `idempotency_key` into the header `Idempotency-Key`.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from tests import forged

WAYS = frozenset({"sql", "http", "python", "cli"})
NEEDS = frozenset({"template", "asset", "suppressed", "used_key", "full_stream"})
# Faults that only a database can find.
STATE_CODES = frozenset(
    {
        *("unknown_template", "missing_variable", "unknown_asset", "unknown_stream"),
        *("idempotency_conflict", "limit_reached"),
    }
)


class Fault(msgspec.Struct, frozen=True):
    """What a refusal must say."""

    code: str
    field: str
    status: int


class Case(msgspec.Struct, frozen=True):
    """One case; `expect` None means that the email is accepted."""

    name: str
    body: Any
    expect: Fault | None
    needs: tuple[str, ...]
    ways: frozenset[str]


def cases(now: datetime, way: str | None = None) -> list[Case]:
    """Return all cases with times seen from the aware `now`, or those that one way in can express."""
    return [
        Case(
            name=raw["name"],
            body=_make(raw["body"], now),
            expect=None if raw["expect"] == "ok" else Fault(**_make(raw["expect"], now)),
            needs=tuple(raw.get("needs", ())),
            ways=frozenset(raw.get("ways", WAYS)),
        )
        for raw in _raw()
        if way is None or way in raw.get("ways", WAYS)
    ]


@cache
def _raw() -> list[dict[str, Any]]:
    return [
        *json.loads((Path(__file__).parent / "corpus.json").read_text(encoding="ascii")),
        *forged.cases(),
    ]


def _make(value: Any, now: datetime) -> Any:
    """Build a value; generators are objects whose first key begins with $."""
    if isinstance(value, list):
        return [_make(item, now) for item in value]
    if not isinstance(value, dict):
        return value
    if "$in_seconds" in value:
        return _moment(now + timedelta(seconds=value["$in_seconds"]), value.get("offset"))
    if "$repeat" in value:
        text, count, *around = value["$repeat"]
        before, after = around or ("", "")
        return before + text * count + after
    if "$list" in value:
        count, item = value["$list"]
        return [_make(_counted(item, i), now) for i in range(count)]
    if "$object" in value:
        count, key, item = value["$object"]
        return {_counted(_make(key, now), i): _make(_counted(item, i), now) for i in range(count)}
    return {key: _make(item, now) for key, item in value.items()}


def _counted(value: Any, i: int) -> Any:
    return value.replace("{i}", str(i)) if isinstance(value, str) else value


def _moment(moment: datetime, offset: str | None) -> str:
    """Write a moment as ISO 8601 in UTC, or at an offset of whole hours."""
    if offset is None:
        return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return moment.astimezone(timezone(timedelta(hours=int(offset[:3])))).isoformat()
