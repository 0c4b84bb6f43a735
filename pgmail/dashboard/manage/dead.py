"""Dead letters: what pgmail gave up on, the last reply to it, and retry or discard, one by one or by filter.

What can go wrong: a filter that means more than was thought, or an answer that is sent twice. So the question counts
what it would reach and says until which moment and letter that is, and the deed takes those and no others: what died
since stays, and a second time there is nothing left to do.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from litestar import Request, Response, get, post

from pgmail.access.reach import reached_of, streams_of, within_reach
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
    read_id,
    until_now,
    why,
)
from pgmail.errors import Refused
from pgmail.store import emails, streams, templates
from pgmail.store.keys import Caller
from pgmail.store.tenant import Connection, acting_as

AnyRequest = Request[Any, Any, Any]

HOME = "/dashboard/dead-letters"
FILTERS = ("stream", "site", "reason", "template", "recipient", "text", "died")
REASONS = (
    ("", "any reason"),
    ("attempts_exhausted", "attempts used up"),
    ("too_old", "too old"),
    ("template", "template fault"),
    ("poison", "cannot be processed"),
    ("seal_broken", "seal broken"),
)
VERBS = {"retry": ("Retry", "retried"), "discard": ("Discard", "discarded")}
_NONE = "none of it is a dead letter any more: it was dealt with already, here or by somebody else"
MOST = 20_000  # that one deed reaches, in parts of `MAX_ACTS`, each a transaction of its own


@get("/dead-letters", scope=SEE)
async def show_dead(request: AnyRequest) -> Response[Any]:
    """The page."""
    given, caller = await given_of(request), caller_of(request)
    chosen, asked = _filter(given, caller), page_of(given)
    async with acting_as(database_of(request), caller) as connection:
        rows, more = await emails.dead_letters(connection, chosen, asked, streams_of(caller, chosen.stream))
        named = [row.name for row in await streams.listing(connection)]
        known = [row.name for row in await templates.listing(connection)]
    kept = kept_of(given, FILTERS)
    return page(
        request, "manage/dead.html", title="Dead letters", rows=rows, more=more, asked=asked, kept=kept,
        streams=named, templates=known, spans=SPAN_WORDS,
        reasons=REASONS, died_of=dict(REASONS),
        may_act=may(caller, MANAGE, test=True),
    )  # fmt: skip


@get("/dead-letters/retry", scope=MANAGE, test=True)
async def ask_retry(request: AnyRequest) -> Response[Any]:
    """Ask about a retry, with how many it would reach."""
    return await _ask(request, "retry")


@post("/dead-letters/retry", scope=MANAGE, status_code=200, test=True)
async def retry(request: AnyRequest) -> Response[Any]:
    """Put dead letters back into the queue."""
    return await _act(request, "retry")


@get("/dead-letters/discard", scope=MANAGE, test=True)
async def ask_discard(request: AnyRequest) -> Response[Any]:
    """Ask about giving up, with how many it would reach."""
    return await _ask(request, "discard")


@post("/dead-letters/discard", scope=MANAGE, status_code=200, test=True)
async def discard(request: AnyRequest) -> Response[Any]:
    """Give dead letters up."""
    return await _act(request, "discard")


async def _ask(request: AnyRequest, verb: str) -> Response[Any]:
    question, count = await _question(request, await given_of(request), verb)
    if not count:
        raise Refused("not_found", "/id", _NONE, 404)
    return ask(request, question)


async def _act(request: AnyRequest, verb: str) -> Response[Any]:
    given, caller = await given_of(request), caller_of(request)
    deed_of = emails.retry if verb == "retry" else emails.discard
    count = given.one("count")

    async def deed() -> str:
        reason, named = given.reason(), given.uuids("id")
        left = int(count) if count.isascii() and count.isdigit() and len(count) < 7 else len(named)
        done, more = 0, True
        while more and left > 0:
            async with acting_as(database_of(request), caller) as connection:
                found, more = await _found(connection, caller, given, min(left, emails.MAX_ACTS))
                reached = await deed_of(connection, found, reason) if found else 0
            done += reached
            left -= reached
            if not reached:
                break
        if not done:
            raise Refused("not_found", "/id", _NONE, 404)
        what = number(done, "dead letter")
        return (
            f"{what} put back into the queue, due now."
            if verb == "retry"
            else f"{what} discarded; they end as cancelled."
        )

    question, _ = await _question(request, given, verb)
    return await act(request, question, deed)


async def _found(connection: Connection, caller: Caller, given: Given, limit: int) -> tuple[list[UUID], bool]:
    """What was chosen or is meant by the filter, as far as it is dead and within reach; and whether there is more."""
    chosen, ids = _filter(given, caller), given.uuids("id")
    reach = streams_of(caller, chosen.stream)
    if ids:
        wanted = await reached_of(connection, caller, ids)
        return await emails.dead_ids(connection, wanted, limit=limit, streams=reach)
    below = read_id(given.one("below")) if given.has("below") else None
    return await emails.dead_ids(connection, chosen, limit=limit, streams=reach, below=below)


async def _question(request: AnyRequest, given: Given, verb: str) -> tuple[Ask, int]:
    """The question and how many it concerns."""
    caller, ids, given = caller_of(request), given.uuids("id"), until_now(given)
    async with acting_as(database_of(request), caller) as connection:
        found, more = await _found(connection, caller, given, MOST)
    kept = kept_of(given, FILTERS)
    words = []
    if not ids:
        words.append(all_that_match(kept, "All dead letters there are: no filter is set."))
    if more:
        words.append(f"There are more; this takes the first {MOST:,}, then ask again.")
    words.append(
        "They go back into the queue, due now, with their attempts counted from none. Mend the cause first, or they "
        "die again."
        if verb == "retry"
        else "They end as cancelled, and nobody gets them. This cannot be undone; to send one later, send a new email."
    )
    title = f"{VERBS[verb][0]} {number(len(found), 'dead letter')}?"
    hidden = [("id", str(id_)) for id_ in ids]
    hidden += [("count", given.one("count") or str(len(found))), ("until", given.one("until")), *kept.items()]
    if found and not ids:
        hidden.append(("below", given.one("below") or str(UUID(int=found[-1].int + 1))))
    question = Ask(
        title=title, action=f"{HOME}/{verb}", button=VERBS[verb][0],
        back=link(HOME, **kept), words=words,
        fields=(why(given, placeholder="the relay is back" if verb == "retry" else "the campaign is over"),),
        hidden=hidden, danger=verb == "discard",
    )  # fmt: skip
    return question, len(found)


def _filter(given: Given, caller: Caller) -> emails.DeadFilter:
    chosen = emails.DeadFilter(
        stream=given.one("stream") or None,
        site=given.one("site") or None,
        reason=given.one("reason") or None,
        template=given.one("template") or None,
        recipient=given.one("recipient") or None,
        text=given.one("text") or None,
        died_after=given.since("died"),
        died_before=given.moment("until"),
    )
    return within_reach(caller, chosen)


HANDLERS = (show_dead, ask_retry, retry, ask_discard, discard)
