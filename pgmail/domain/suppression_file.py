"""A file of addresses that get no mail, as people and other providers write them. Lines in, entries out; no I/O.

CSV with a header, a single column of addresses without one, or JSON lines as `pgmail suppression export` writes
them. The columns of SendGrid, Mailgun, Amazon SES and Postmark exports are known by their names, and their words
for why; a reason that is none of ours but the reply of a server (a permanent one, RFC 5321 section 4.2.1) is a
bounce, and is kept as the source.

What can go wrong with a row is told with its line, and the others go on. A file without a column of addresses is
refused as a whole (`invalid_csv`). A `created` that cannot be read is left out: better suppressed now than not.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import chain
from typing import NamedTuple

from pgmail.domain import when
from pgmail.errors import Refused

_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "address": ("email", "address", "emailaddress", "recipient", "to"),
    "reason": ("suppressionreason", "reason", "type"),
    "created": ("created", "createdat", "lastupdatetime", "date", "timestamp"),
    "expires": ("expiresat",),
    "stream": ("stream",),
    "source": ("source", "error", "origin"),
    "status": ("status", "code"),  # of a server's reply
}
_REASONS: Mapping[str, str] = {
    **dict.fromkeys(("bounce", "bounced", "hardbounce", "hardbounced", "permanentbounce"), "bounced"),
    **dict.fromkeys(
        ("complaint", "complained", "spamcomplaint", "spamreport", "spam", "abuse"), "complained"
    ),
    **dict.fromkeys(("unsubscribe", "unsubscribed", "optout", "groupunsubscribe"), "unsubscribed"),
    **dict.fromkeys(("manual", "manualsuppression", "blocklist"), "manual"),
    **dict.fromkeys(("invalid", "invalidemail", "invalidaddress"), "invalid"),
}
_NOT_LETTERS = re.compile(r"[^a-z0-9]+")
_PERMANENT = re.compile(r"\s*[56](\d\d\b|\.\d)")
_SOURCE = 1_000  # characters of it that are kept


class Entry(NamedTuple):
    """A row: the line that it begins on, counted from 1; without a stream or reason those of the import hold."""

    line: int
    address: str
    stream: str | None
    reason: str | None
    source: str | None
    created_at: datetime | None
    expires_at: datetime | None


class Bad(NamedTuple):
    """A row that cannot be taken."""

    line: int
    address: str
    code: str
    message: str


def read(lines: Iterable[str]) -> Iterator[Entry | Bad]:
    """Read a file's lines. Raises Refused (`invalid_csv`) for a file that holds no column of addresses."""
    walk = iter(lines)
    before = []  # blank lines, which count
    for first in walk:
        if first.strip():
            break
        before.append(first)
    else:
        return
    again = chain(before, [first.removeprefix("\ufeff")], walk)
    yield from _json_lines(again) if first.lstrip("\ufeff \t").startswith("{") else _table(again, first)


def _table(lines: Iterable[str], first: str) -> Iterator[Entry | Bad]:
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(lines, delimiter=delimiter)
    columns: dict[str, int] | None = None
    while True:
        began = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise Refused("invalid_csv", "", f"line {began}: {error}") from None
        if not any(cell.strip() for cell in cells):
            continue
        if columns is None:
            columns, is_header = _header(cells)
            if is_header:
                continue
        yield _entry(began, {name: cells[at] for name, at in columns.items() if at < len(cells)})


def _header(cells: list[str]) -> tuple[dict[str, int], bool]:
    """Where each of our columns is, and whether the row was a header at all."""
    names = [_plain(cell) for cell in cells]
    found = {}
    for column, words in _COLUMNS.items():
        at = next((names.index(word) for word in words if word in names), None)
        if at is not None:
            found[column] = at
    if "address" in found:
        return found, True
    if len(cells) == 1 and "@" in cells[0]:
        return {"address": 0}, False
    raise Refused("invalid_csv", "", "no column of addresses: the header must name email or address")


def _json_lines(lines: Iterable[str]) -> Iterator[Entry | Bad]:
    for line, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            yield Bad(line, "", "invalid_json", f"not JSON: {error}")
            continue
        if not isinstance(value, dict):
            yield Bad(line, "", "invalid_json", "not an object")
            continue
        given = {_plain(key): str(item) for key, item in value.items() if item is not None}
        cells = {}
        for column, words in _COLUMNS.items():
            word = next((word for word in words if word in given), None)
            if word is not None:
                cells[column] = given[word]
        yield _entry(line, cells)


def _entry(line: int, cells: Mapping[str, str]) -> Entry | Bad:
    cells = {name: text.strip() for name, text in cells.items()}
    address = cells.get("address", "")
    if not address:
        return Bad(line, "", "invalid_address", "there is no address")
    if "\ufffd" in address or "\0" in "".join(cells.values()):
        return Bad(line, address.replace("\0", "\ufffd"), "invalid_address", "is not UTF-8 text")
    said, status = cells.get("reason", ""), cells.get("status", "")
    reason = _REASONS.get(_plain(said))
    if reason is None and (_PERMANENT.match(status) or _PERMANENT.match(said)):
        reason = "bounced"
    own = said if said and _plain(said) not in _REASONS else ""
    source = " ".join(x for x in (status, own, cells.get("source", "")) if x)
    expires = cells.get("expires")
    try:
        expires_at = when.parse_iso(expires) if expires else None
    except ValueError as error:
        return Bad(line, address, "invalid_time", f"expires_at: {error}")
    return Entry(
        line, address, cells.get("stream") or None, reason, source[:_SOURCE] or None,
        _moment(cells.get("created", "")), expires_at,
    )  # fmt: skip


def _moment(text: str) -> datetime | None:
    """A moment as exports write it: ISO 8601 (UTC unless it says otherwise), seconds since 1970, RFC 5322."""
    try:
        if text.isascii() and text.isdigit():
            return datetime.fromtimestamp(int(text), UTC)
        if text[:4].isdigit():
            at = datetime.fromisoformat(text.removesuffix(" UTC"))
        else:
            at = parsedate_to_datetime(text.replace(" UTC", " +0000"))
    except (ValueError, OverflowError, OSError):
        return None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _plain(text: str) -> str:
    return _NOT_LETTERS.sub("", text.lower())
