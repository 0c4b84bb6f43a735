"""What requests say outside their bodies: ids in paths, filters and pages in queries.

What can go wrong: a misspelt filter that is ignored shows, or retries, more than was asked for. So a
parameter that a route does not know is refused, by name.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any
from uuid import UUID

from litestar import Request
from litestar.connection import ASGIConnection

from pgmail.access import asked
from pgmail.domain import ids, when
from pgmail.errors import Refused
from pgmail.seals import Sealer
from pgmail.store.emails import Page

MAX_PAGE = 100
PAGING = ("limit", "after", "before")
ITEM = "the id of an item of the list"

# Routes find these beside what else they read of a request; the dashboard shares them.
SEE, CHANGE = asked.SEE, asked.CHANGE
caller_of, database_of = asked.caller_of, asked.database_of

AnyRequest = Request[Any, Any, Any]

_BARE_OFFSET = re.compile(r" (\d\d(?::?\d\d)?)$", re.ASCII)  # a + in a query means a space


def sealer_of(request: AnyRequest) -> Sealer:
    """Return what seals and opens mail here."""
    sealer: Sealer = request.app.state.sealer
    return sealer


def path_id(request: AnyRequest) -> UUID:
    """Return the id in a path. Refused `not_found` (404): nothing has an id that is no UUID."""
    text = str(request.path_params["id"])
    try:
        return UUID(text)
    except ValueError:
        raise Refused("not_found", "/id", f"no email or recipient has the id {text[:80]!r}", 404) from None


def path_name(request: AnyRequest) -> str:
    """Return the name in a path. Refused `not_found` (404): no name holds U+0000."""
    text = str(request.path_params["name"]).removeprefix("/")
    if "\0" in text:
        raise Refused("not_found", "/name", "no name holds U+0000", 404)
    return text


def query(request: ASGIConnection[Any, Any, Any, Any], *known: str) -> dict[str, str]:
    """Return the parameters of a query. Raises Refused `invalid_parameter` for one unknown or given twice."""
    found: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in known:
            raise Refused("invalid_parameter", f"/{name[:80]}", f"known here: {', '.join(known) or 'none'}")
        if name in found:
            raise Refused("invalid_parameter", f"/{name}", "is given twice")
        if "\0" in value:
            raise Refused("invalid_parameter", f"/{name}", "holds U+0000")
        if value:
            found[name] = value
    return found


def limit_of(given: dict[str, str], default: int = 20, most: int = MAX_PAGE) -> int:
    """Return how many items a page has, 1 to `most`. Raises Refused `invalid_parameter`."""
    text = given.get("limit", str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 9 and 1 <= int(text) <= most):
        raise Refused("invalid_parameter", "/limit", f"must be a number from 1 to {most}")
    return int(text)


def number_of(given: dict[str, str], name: str) -> int | None:
    """Return a number from 1 on, or None if there is none. Raises Refused `invalid_parameter`."""
    text = given.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text)):
        raise Refused("invalid_parameter", f"/{name}", "must be a whole number from 1")
    return int(text)


def page_of(given: dict[str, str]) -> Page:
    """Return the page that was asked for. Raises Refused `invalid_parameter`."""
    if "after" in given and "before" in given:
        raise Refused("invalid_parameter", "/before", "a page comes after or before an id, not both")
    return Page(limit_of(given), id_of(given, "after", ITEM), id_of(given, "before", ITEM))


def moment_of(given: dict[str, str], name: str) -> datetime | None:
    """Return a moment, ISO 8601 with an offset, in 1970 or later. Raises Refused `invalid_parameter`."""
    if name not in given:
        return None
    try:
        moment = when.parse_iso(_BARE_OFFSET.sub(r"+\1", given[name]))
        ids.floor(moment)  # nothing was made before 1970
    except ValueError as error:
        raise Refused("invalid_parameter", f"/{name}", str(error)) from None
    return moment


def id_of(given: dict[str, str], name: str, what: str = "an id") -> UUID | None:
    """Return an id, or None if there is none. Raises Refused `invalid_parameter`."""
    if name not in given:
        return None
    try:
        return UUID(given[name])
    except ValueError:
        raise Refused("invalid_parameter", f"/{name}", f"must be {what}") from None
