"""The list of emails: searched by id, address or tag, narrowed by state, stream and time; its states are live.

What is typed decides what it is: an id opens the email, an address finds its recipient, `name=value` a tag.

What can go wrong: a search that would have to read everything, such as a word of a subject. There is none; the page
says what can be searched for.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from litestar import Request, Response, get
from litestar.response import Stream

from pgmail.access.reach import reached_of, streams_of
from pgmail.dashboard import frame, live
from pgmail.dashboard.guard import caller_of, database_of
from pgmail.dashboard.menu import ROOT
from pgmail.domain import address as addresses
from pgmail.domain import ids, when
from pgmail.domain.states import State
from pgmail.errors import Refused
from pgmail.store import emails as store
from pgmail.store import pages, streams
from pgmail.store.tenant import acting_as

AnyRequest = Request[Any, Any, Any]

PER_PAGE = 40
EVERY_SECONDS = 1.0
MOST_NEW = 99
HERE = f"{ROOT}/emails"
SPANS = {
    "1h": timedelta(hours=1),
    "24h": timedelta(days=1),
    "7d": timedelta(days=7),
    "30d": timedelta(days=30),
}
_TIMES = (
    ("", "Any time"),
    ("1h", "Last hour"),
    ("24h", "Last 24 hours"),
    ("7d", "Last 7 days"),
    ("30d", "Last 30 days"),
)


class Asked(NamedTuple):
    """What was asked for, as it stands in the form; `since` is a span or a moment."""

    q: str = ""
    state: str = ""
    stream: str = ""
    since: str = ""

    @property
    def plain(self) -> bool:
        """Whether all mail is meant, or all of a stream: then what comes in newly can be counted."""
        return not (self.q or self.state or self.since)


class Found(NamedTuple):
    """What a query means: a filter, the id of an email to open, or a fault in words."""

    filter: store.Filter
    id: UUID | None = None
    fault: str = ""


class Item(msgspec.Struct, frozen=True):
    """A line of the list."""

    id: UUID
    at: datetime
    to: str
    others: int
    subject: str | None
    sealed: bool
    stream: str
    tags: list[tuple[str, str]]
    states: list[tuple[str, int]]


@get("/emails", scope="read")
async def show_emails(request: AnyRequest) -> Response[str]:
    """The page."""
    asked = _asked(request)
    found = understood(asked, datetime.now(UTC))
    if found.id is not None:
        return Response("", status_code=303, headers={"Location": f"{HERE}/{found.id}"})
    caller = caller_of(request)
    items: list[Item] = []
    more, newer, fault, place = False, False, found.fault, None
    page = _page(request)
    async with acting_as(database_of(request), caller) as connection:
        names = [row.name for row in await streams.listing(connection)]
        if not fault:
            try:
                reached = streams_of(caller, found.filter.stream)
                rows, more, place = await store.listing(
                    connection, found.filter, page, reached, only_tests=caller.test
                )
                items = [_item(row) for row in rows]
                newer = page.after is not None or (page.before is not None and more)
                more = more or page.before is not None
            except Refused as refusal:
                fault = refusal.message
    first_page = page.after is None and page.before is None
    shown = [name for name in names if caller.streams is None or name in caller.streams]
    return frame.page(
        request,
        "emails.html",
        asked=asked,
        fault=fault,
        items=items,
        streams=shown,
        states=list(State),
        times=_times(asked.since),
        newer=frame.link(HERE, **asked._asdict(), before=items[0].id) if items and newer else "",
        older=frame.link(HERE, **asked._asdict(), after=items[-1].id) if items and more and not place else "",
        on=_search_on(asked, page, place),
        first_page=first_page,
        live=_live_path(asked, items, first_page=first_page) if not fault else "",
        filtered=bool(asked.q or asked.state or asked.stream or asked.since),
    )


@get("/live/emails", scope="read")
async def stream_emails(request: AnyRequest) -> Stream:
    """The states of the emails on a page, and how many came in since."""
    given = request.query_params
    shown = _ids(given.get("ids", ""))
    stream, counted = given.get("stream") or None, given.get("count") == "1"
    caller, database = caller_of(request), database_of(request)
    reached = streams_of(caller, stream)
    top = max(shown, default=None)
    async with acting_as(database, caller) as connection:
        shown = await reached_of(connection, caller, shown)

    async def make() -> live.Parts:
        async with acting_as(database, caller) as connection:
            states = await pages.states(connection, shown)
            new = (
                await pages.newer(connection, top, stream, reached, only_tests=caller.test) if counted else 0
            )
        parts = {
            f"states-{email}": frame.rendered("emails_states.html", states=_counted(found))
            for email, found in states.items()
        }
        here = frame.link(HERE, stream=stream)
        parts["news"] = frame.rendered("emails_news.html", new=new, most=MOST_NEW, here=here)
        return parts

    reach = None if reached is None else tuple(reached)
    key = ("emails", caller.tenant_id, reach, caller.test, tuple(shown), stream, counted)
    return live.stream(request, key, make, EVERY_SECONDS)


def understood(asked: Asked, now: datetime) -> Found:
    """Return what a query means."""
    q = asked.q.strip()
    chosen = store.Filter(
        state=State(asked.state) if asked.state in set(State) else None, stream=asked.stream or None
    )
    try:
        since = now - SPANS[asked.since] if asked.since in SPANS else None
        if asked.since and since is None:
            since = when.parse_iso(asked.since)
        if since is not None:
            chosen = msgspec.structs.replace(chosen, above=UUID(int=ids.floor(since).int - 1))
    except ValueError as error:
        return Found(chosen, fault=f"The time {asked.since[:40]!r} is none: {error}.")
    if not q:
        return Found(chosen)
    if "\0" in q:
        return Found(chosen, fault="U+0000 is in nothing that can be searched for.")
    try:
        return Found(chosen, id=UUID(q))
    except ValueError:
        pass
    if "=" in q and "@" not in q.partition("=")[0]:
        name, _, value = q.partition("=")
        return Found(msgspec.structs.replace(chosen, tag=(name.strip(), value.strip())))
    if "@" in q:
        try:
            return Found(msgspec.structs.replace(chosen, recipient=addresses.parse(q).address))
        except ValueError as error:
            return Found(chosen, fault=f"This is no address: {error}.")
    return Found(
        chosen, fault="Search for the id of an email or recipient, a whole address, or a tag as name=value."
    )


def _asked(request: AnyRequest) -> Asked:
    given = request.query_params
    return Asked(*(str(given.get(name, "")).strip()[:500] for name in Asked._fields))


def _page(request: AnyRequest) -> store.Page:
    def cursor(name: str) -> UUID | None:
        try:
            return UUID(request.query_params.get(name, ""))
        except ValueError:
            return None

    after = cursor("after")
    return store.Page(PER_PAGE, after, None if after else cursor("before"))


def _search_on(asked: Asked, page: store.Page, place: UUID | None) -> tuple[str, datetime] | None:
    """Return the link to where the search goes on, and up to when it looked; None: it looked at all it had to."""
    if place is None:
        return None
    way = {"before": place} if page.before is not None else {"after": place}
    return frame.link(HERE, **asked._asdict(), **way), ids.time_of(place)


def _item(row: Any) -> Item:
    people = row.people or [{"address": "", "name": None}]
    first = people[0]
    return Item(
        row.id,
        row.created_at,
        str(first["address"]),
        max(0, (row.recipients or 1) - 1),
        row.content.get("subject"),
        row.key_id is not None,
        row.stream,
        list((row.tags or {}).items()),
        _counted(row.states or []),
    )


def _counted(states: list[str]) -> list[tuple[str, int]]:
    return sorted(Counter(states).items(), key=lambda pair: list(State).index(State(pair[0])))


def _times(chosen: str) -> list[tuple[str, str]]:
    known = list(_TIMES)
    if chosen and chosen not in SPANS:
        known.append((chosen, f"Since {chosen}"))
    return known


def _live_path(asked: Asked, items: list[Item], *, first_page: bool) -> str:
    counted = first_page and asked.plain
    if not items and not counted:
        return ""
    return frame.link(
        f"{ROOT}/live/emails",
        ids=" ".join(str(item.id) for item in items),
        stream=asked.stream,
        count="1" if counted else "",
    )


def _ids(text: str) -> list[UUID]:
    found = []
    for word in text.split()[:PER_PAGE]:
        try:
            found.append(UUID(word))
        except ValueError:
            raise Refused("invalid_parameter", "/ids", "must be ids of emails") from None
    return found
