"""One email: where it stands and why, each step of its way, its recipients, what it looks like; cancel, hold, retry.

The header, the journey and the recipients are live until every recipient is final. They are shared by all who look at
the email, so they hold nothing of a session: buttons stand beside them and are shown by the states that allow them.

What can go wrong: an action that comes too late, since a worker was faster. Then it is said, and nothing was changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from litestar import Request, Response, get, post
from litestar.response import Stream

from pgmail.access.reach import need_reach
from pgmail.dashboard import frame, live, preview
from pgmail.dashboard.guard import CHANGE, caller_of, database_of, may
from pgmail.dashboard.menu import ROOT
from pgmail.domain.states import FINAL, State
from pgmail.errors import Refused
from pgmail.store import emails as store
from pgmail.store import pages
from pgmail.store.tenant import acting_as

AnyRequest = Request[Any, Any, Any]
T = TypeVar("T")

EVERY_SECONDS = 0.7
MOST_PEOPLE = 50  # that are shown; a broadcast has more
MOST_EVENTS = 120
MAX_REASON = 500
VIEWS = ("HTML", "Text", "Headers")


class Way(NamedTuple):
    """Where an email stands: rows of `recipients` and `events`, and why, a line for each recipient that is shown."""

    people: list[Any]
    events: list[Any]
    why: str

    @property
    def final(self) -> bool:
        """Whether nothing moves it again."""
        return all(State(person.state) in FINAL for person in self.people)


@get("/emails/{id:str}", scope="read")
async def show_email(request: AnyRequest) -> Response[str]:
    """The page; the id may be a recipient's, which is shown first then."""
    wanted, caller = _id(request), caller_of(request)
    async with acting_as(database_of(request), caller) as connection:
        await need_reach(connection, caller, [wanted])
        first = await store.recipients(connection, wanted)
        message = await store.message(connection, first[0].message_id) if first else None
        if message is None:
            raise Refused("not_found", "/id", "this email is kept no longer", 404)
        way = await _way(connection, message.id, first if wanted == message.id else None)
        person = _person(request, way, first[0] if wanted != message.id else None)
        material = await preview.gather(connection, message, person)
    opened = await preview.opened(request, message)
    look = await preview.look(request, material, opened)
    view = _view(request, look)
    return frame.page(
        request,
        "email.html",
        message=message,
        content=opened.content,
        closed=opened.because,
        subject=look.subject or opened.content.get("subject"),
        person=person,
        look=look,
        view=view,
        views=_views(message.id, person, look),
        parts=_parts(way),
        states={row.state for row in way.people},
        live="" if way.final else f"{ROOT}/live/emails/{message.id}",
        may_cancel=may(caller, *CHANGE, test=True),
        may_manage=may(caller, "manage"),
        priority={1: "high", 2: "normal", 3: "low"}.get(message.priority, str(message.priority)),
    )


@get("/live/emails/{id:str}", scope="read")
async def stream_email(request: AnyRequest) -> Stream:
    """The live parts of the page, until nothing moves any more."""
    wanted, caller, database = _id(request), caller_of(request), database_of(request)
    async with acting_as(database, caller) as connection:
        await need_reach(connection, caller, [wanted])
        await store.recipients(connection, wanted)  # there is such an email, and it is this tenant's
    over = False

    async def make() -> live.Parts | None:
        nonlocal over
        if over:
            return None
        async with acting_as(database, caller) as connection:
            way = await _way(connection, wanted)
        over = way.final
        return _parts(way)

    return live.stream(request, ("email", caller.tenant_id, wanted), make, EVERY_SECONDS)


@post("/emails/{id:str}/cancel", scope=CHANGE, test=True, status_code=200)
async def cancel_email(request: AnyRequest) -> Response[str]:
    """Cancel what is not being sent or settled."""
    wanted, answer = await _act(request, store.cancel)
    return _answer(request, wanted, answer["cancelled"], "Cancelled", answer["too_late"])


@post("/emails/{id:str}/hold", scope="manage", test=True, status_code=200)
async def hold_email(request: AnyRequest) -> Response[str]:
    """Stop what is not being sent or settled, until it is released."""
    wanted, answer = await _act(request, store.hold)
    return _answer(request, wanted, answer["held"], "Held", answer["too_late"])


@post("/emails/{id:str}/release", scope="manage", test=True, status_code=200)
async def release_email(request: AnyRequest) -> Response[str]:
    """Let what is held go again."""
    wanted, answer = await _act(request, store.release)
    return _answer(request, wanted, answer["released"], "Released", answer["busy"])


@post("/emails/{id:str}/retry", scope="manage", status_code=200)
async def retry_email(request: AnyRequest) -> Response[str]:
    """Try again now what was deferred, or given up as a dead letter."""
    wanted, reached = await _act(request, lambda on, id_, reason: store.retry(on, [id_], reason))
    return _answer(request, wanted, reached, "Queued to be tried now", 0)


async def _way(connection: store.Connection, id: UUID, people: list[Any] | None = None) -> Way:
    """Where an email stands; its people, if they were read before."""
    if people is None:
        people = await store.recipients(connection, id)
    return Way(
        people,
        await store.events(connection, id),
        await pages.why(connection, [person.recipient_id for person in people[:MOST_PEOPLE]]),
    )


def _parts(way: Way) -> live.Parts:
    """The live parts, by the elements that they fill."""
    counted = Counter(person.state for person in way.people)
    return {
        "standing": frame.rendered(
            "email_standing.html",
            states=sorted(counted.items(), key=lambda pair: list(State).index(State(pair[0]))),
            why=way.why.splitlines(),
        ),
        "journey": frame.rendered(
            "email_journey.html",
            events=way.events[-MOST_EVENTS:],
            left=max(0, len(way.events) - MOST_EVENTS),
            several=len(way.people) > 1,
        ),
        "people": frame.rendered(
            "email_people.html", people=way.people[:MOST_PEOPLE], left=max(0, len(way.people) - MOST_PEOPLE)
        ),
    }


def _person(request: AnyRequest, way: Way, named: Any | None) -> Any:
    """Whose look of the email is shown: the one asked for, else the first."""
    asked = request.query_params.get("person", "")
    return next((row for row in way.people if str(row.recipient_id) == asked), named or way.people[0])


def _view(request: AnyRequest, look: preview.Look) -> str:
    asked = request.query_params.get("view", "")
    if asked in VIEWS and not (asked == "HTML" and look.html is None):
        return asked
    return "HTML" if look.html is not None else "Text"


def _views(id: UUID, person: Any, look: preview.Look) -> list[tuple[str, str]]:
    return [
        (name, frame.link(f"{ROOT}/emails/{id}", view=name, person=person.recipient_id) + "#look")
        for name in VIEWS
        if name != "HTML" or look.html is not None
    ]


async def _act(
    request: AnyRequest, act: Callable[[store.Connection, UUID, str | None], Awaitable[T]]
) -> tuple[UUID, T]:
    """Do something about an email, or one recipient of it, for the reason of the form; its id, and what came of it."""
    wanted, caller = _id(request), caller_of(request)
    reason = str((await request.form()).get("reason", "")).strip()[:MAX_REASON] or None
    async with acting_as(database_of(request), caller) as connection:
        await need_reach(connection, caller, [wanted], change=True)
        return wanted, await act(connection, wanted, reason)


def _answer(request: AnyRequest, id: UUID, reached: int, word: str, missed: int) -> Response[str]:
    if not reached:
        raise Refused(
            "too_late", "", "Nothing was changed: it is being sent, settled or changed at this moment.", 409
        )
    rest = f"; {missed} could not be reached" if missed else ""
    many = f" {reached} recipients" if reached > 1 else ""
    return frame.done(request, f"{word}{many}{rest}.", f"{ROOT}/emails/{id}")


def _id(request: AnyRequest) -> UUID:
    try:
        return UUID(request.path_params["id"])
    except ValueError:
        raise Refused("not_found", "/id", "no email or recipient has this id", 404) from None
