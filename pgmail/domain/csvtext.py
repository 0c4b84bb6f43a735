"""Rows as CSV (RFC 4180): a line of names, CRLF, quotes where they are needed, nothing for None, times in UTC.

What can go wrong: a spreadsheet takes a text for a formula. One that begins like a formula gets an apostrophe in front,
as spreadsheets themselves write such a text.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

_FORMULAS = ("=", "+", "-", "@", "\t", "\r")


def write(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return the text of all rows."""
    made = io.StringIO()
    writer = csv.writer(made)
    writer.writerow(names)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return made.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str) and value.startswith(_FORMULAS):
        return "'" + value
    return str(value)
