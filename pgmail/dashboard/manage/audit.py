"""The audit: who did what, when, from where and why; filtered, newest first.

Row-level security shows the tenant's own acts. What can go wrong: an act tells of any stream's mail, so a key that is
limited to some streams is refused.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from litestar import Request, Response, get

from pgmail.access.reach import need_all_streams
from pgmail.dashboard.frame import page
from pgmail.dashboard.guard import caller_of, database_of
from pgmail.dashboard.manage.questions import MANAGE, SPAN_WORDS, given_of
from pgmail.errors import Refused
from pgmail.store import audit as store
from pgmail.store.tenant import acting_as

AnyRequest = Request[Any, Any, Any]

PER_PAGE = 50
FILTERS = ("span", "actor", "action", "object")


@get("/audit", scope=MANAGE, test=False)
async def show_audit(request: AnyRequest) -> Response[Any]:
    """The page."""
    given, caller = await given_of(request), caller_of(request)
    need_all_streams(caller)
    before = given.one("before")
    if before and not (before.isascii() and before.isdigit() and len(before) < 19):
        raise Refused("invalid_parameter", "/before", "must be the id of an act of the list")
    async with acting_as(database_of(request), caller) as connection:
        rows = await store.listing(
            connection,
            limit=PER_PAGE + 1,
            own=True,
            before=int(before) if before else None,
            since=given.since("span"),
            actor=given.one("actor") or None,
            action=given.one("action") or None,
            object=given.one("object") or None,
        )
    kept = {name: text for name in FILTERS if (text := given.one(name))}
    return page(
        request, "manage/audit.html", title="Audit", rows=rows[:PER_PAGE], more=len(rows) > PER_PAGE,
        kept=kept, query=urlencode(kept), before=before, spans=SPAN_WORDS,
    )  # fmt: skip


HANDLERS = (show_audit,)
