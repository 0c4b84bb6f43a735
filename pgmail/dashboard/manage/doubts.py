"""Mail in doubt: it may have been sent, and is held until a person says what is to become of it.

What can go wrong: either answer may be the wrong one, a copy or a loss. So the page tells what is known of each
attempt, and the question says what the answer means. An answer is about what was in doubt when it was asked: what came
since is left for another look.
"""

from __future__ import annotations

from typing import Any

from litestar import Request, Response, get, post

from pgmail.access.reach import need_reach, reached_of, streams_of, within_reach
from pgmail.dashboard.frame import link, page
from pgmail.dashboard.guard import SEE, caller_of, database_of, may
from pgmail.dashboard.manage.questions import (
    MANAGE,
    SPAN_WORDS,
    Ask,
    Given,
    act,
    all_that_match,
    ask,
    given_of,
    kept_of,
    number,
    page_of,
    until_now,
    why,
)
from pgmail.errors import Refused
from pgmail.store import doubts as store
from pgmail.store import streams
from pgmail.store.emails import MAX_ACTS, Page
from pgmail.store.keys import Caller
from pgmail.store.tenant import acting_as

AnyRequest = Request[Any, Any, Any]

HOME = "/dashboard/in-doubt"
FILTERS = ("stream", "site", "relay", "recipient", "doubted")
HOWS: dict[str, store.How] = {"assume_sent": "assume_sent", "resend": "resend"}


@get("/in-doubt", scope=SEE)
async def show_doubts(request: AnyRequest) -> Response[Any]:
    """The page."""
    given, caller = await given_of(request), caller_of(request)
    chosen, asked = _filter(given, caller), page_of(given)
    async with acting_as(database_of(request), caller) as connection:
        rows, more = await store.listing(connection, chosen, asked, streams_of(caller, chosen.stream))
        named = [row.name for row in await streams.listing(connection)]
    kept = kept_of(given, FILTERS)
    return page(
        request, "manage/doubts.html", title="In doubt", rows=rows, more=more, asked=asked, kept=kept,
        streams=named, spans=SPAN_WORDS, may_act=may(caller, MANAGE, test=True),
    )  # fmt: skip


@get("/in-doubt/resolve", scope=MANAGE, test=True)
async def ask_resolve(request: AnyRequest) -> Response[Any]:
    """Ask what was found out, and how."""
    return ask(request, await _question(request, await given_of(request)))


@post("/in-doubt/resolve", scope=MANAGE, status_code=200, test=True)
async def resolve(request: AnyRequest) -> Response[Any]:
    """End the doubt of one mail, or of all that a filter means."""
    given, caller = await given_of(request), caller_of(request)

    async def deed() -> str:
        how, reason, ids = _how(given), given.reason(), given.uuids("id")
        chosen = _filter(given, caller)
        async with acting_as(database_of(request), caller) as connection:
            await need_reach(connection, caller, ids)
            done, more = await store.resolve(
                connection, how, ids or chosen, reason, streams_of(caller, chosen.stream)
            )
        if not done:
            because = "none of it is in doubt any more: it was dealt with already, here or by somebody else"
            raise Refused("not_found", "/id", because, 404)
        what = number(done, "email")
        said = f"{what} counted as sent." if how == "assume_sent" else f"{what} put back into the queue."
        return f"{said} There may be more: look again." if more else said

    return await act(request, await _question(request, given), deed)


def _how(given: Given) -> store.How:
    how = HOWS.get(given.one("how"))
    if how is None:
        raise Refused("invalid_field", "/how", "say whether it counts as sent or is sent again")
    return how


async def _question(request: AnyRequest, given: Given) -> Ask:
    caller, ids, how = caller_of(request), given.uuids("id"), _how(given)
    given = until_now(given)
    chosen, kept = _filter(given, caller), kept_of(given, FILTERS)
    count, more = len(ids), False
    if ids:
        async with acting_as(database_of(request), caller) as connection:
            count = len(await reached_of(connection, caller, ids))
    else:
        async with acting_as(database_of(request), caller) as connection:
            rows, more = await store.listing(
                connection, chosen, Page(MAX_ACTS), streams_of(caller, chosen.stream)
            )
        count = len(rows)
    words = []
    if not ids:
        words.append(all_that_match(kept, "All mail in doubt: no filter is set."))
    if more:
        words.append(f"There are more; this takes the first {MAX_ACTS:,}, then ask again.")
    if how == "assume_sent":
        words.append("If it was not sent, its recipient never gets it. Look into the log of the relay first.")
    else:
        words.append(
            "If it was sent, its recipient gets a copy. It keeps its Message-ID, so some mailboxes show one."
        )
    what = number(count, "email")
    return Ask(
        title=f"Count {what} as sent?" if how == "assume_sent" else f"Send {what} again?",
        action=f"{HOME}/resolve", button="Count as sent" if how == "assume_sent" else "Send again",
        back=link(HOME, **kept), words=words,
        fields=(why(given, placeholder="found in the relay's log"),),
        hidden=[("how", how), ("until", given.one("until")), *(("id", str(id_)) for id_ in ids), *kept.items()],
        danger=True,
    )  # fmt: skip


def _filter(given: Given, caller: Caller) -> store.DoubtFilter:
    chosen = store.DoubtFilter(
        stream=given.one("stream") or None,
        site=given.one("site") or None,
        relay=given.one("relay") or None,
        recipient=given.one("recipient") or None,
        doubted_after=given.since("doubted"),
        doubted_before=given.moment("until"),
    )
    return within_reach(caller, chosen)


HANDLERS = (show_doubts, ask_resolve, resolve)
