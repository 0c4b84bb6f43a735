"""Dead letters: what pgmail gave up on, the last reply to it, and retry or discard, one by one or by filter.

What can go wrong: a filter that means more than was thought. So the question counts what it would reach, and the
deed takes no more than was counted then.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from litestar import Request, Response, get, post

from pgmail.access.reach import need_reach, streams_of, within_reach
from pgmail.dashboard.frame import page
from pgmail.dashboard.guard import SEE, caller_of, database_of, may
from pgmail.dashboard.manage.questions import (
    MANAGE,
    SPAN_WORDS,
    Ask,
    Given,
    act,
    ask,
    given_of,
    number,
    page_of,
    why,
)
from pgmail.errors import Refused
from pgmail.store import emails, streams, templates
from pgmail.store.keys import Caller
from pgmail.store.tenant import acting_as

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
    kept = _kept(given)
    return page(
        request, "manage/dead.html", title="Dead letters", rows=rows, more=more, asked=asked, kept=kept,
        query=urlencode(kept), streams=named, templates=known, spans=SPAN_WORDS,
        reasons=REASONS, died_of=dict(REASONS),
        may_act=may(caller, MANAGE, test=True),
    )  # fmt: skip


@get("/dead-letters/retry", scope=MANAGE, test=True)
async def ask_retry(request: AnyRequest) -> Response[Any]:
    """Ask about a retry, with how many it would reach."""
    return ask(request, await _question(request, await given_of(request), "retry"))


@post("/dead-letters/retry", scope=MANAGE, status_code=200, test=True)
async def retry(request: AnyRequest) -> Response[Any]:
    """Put dead letters back into the queue."""
    return await _act(request, "retry")


@get("/dead-letters/discard", scope=MANAGE, test=True)
async def ask_discard(request: AnyRequest) -> Response[Any]:
    """Ask about giving up, with how many it would reach."""
    return ask(request, await _question(request, await given_of(request), "discard"))


@post("/dead-letters/discard", scope=MANAGE, status_code=200, test=True)
async def discard(request: AnyRequest) -> Response[Any]:
    """Give dead letters up."""
    return await _act(request, "discard")


async def _act(request: AnyRequest, verb: str) -> Response[Any]:
    given, caller = await given_of(request), caller_of(request)
    deed_of = emails.retry if verb == "retry" else emails.discard
    count = given.one("count")

    async def deed() -> str:
        reason, ids = given.reason(), given.uuids("id")
        chosen = _filter(given, caller)
        left = int(count) if count.isascii() and count.isdigit() and len(count) < 7 else len(ids)
        done = 0
        while left > 0:
            async with acting_as(database_of(request), caller) as connection:
                if caller.test:
                    await need_reach(connection, caller, ids)
                found, more = await emails.dead_ids(
                    connection, ids or chosen, limit=min(left, emails.MAX_ACTS),
                    streams=streams_of(caller, chosen.stream),
                )  # fmt: skip
                reached = await deed_of(connection, found, reason) if found else 0
            done += reached
            left -= max(reached, 1)
            if not more or not reached:
                break
        if not done:
            raise Refused("not_found", "/id", "there is no such dead letter any more", 404)
        what = number(done, "dead letter")
        return (
            f"{what} put back into the queue, due now."
            if verb == "retry"
            else f"{what} discarded; they end as cancelled."
        )

    question = await _question(request, given, verb)
    return await act(request, question, deed)


async def _question(request: AnyRequest, given: Given, verb: str) -> Ask:
    caller, ids = caller_of(request), given.uuids("id")
    chosen = _filter(given, caller)
    async with acting_as(database_of(request), caller) as connection:
        found, more = await emails.dead_ids(
            connection, ids or chosen, limit=MOST, streams=streams_of(caller, chosen.stream)
        )
    kept = _kept(given)
    words = []
    if not ids:
        said = ", ".join(f"{name} {text}" for name, text in kept.items())
        words.append(f"All that match: {said}." if said else "All dead letters there are: no filter is set.")
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
    hidden += [("count", given.one("count") or str(len(found))), *kept.items()]
    return Ask(
        title=title, action=f"{HOME}/{verb}", button=VERBS[verb][0],
        back=f"{HOME}?{urlencode(kept)}" if kept else HOME, words=words,
        fields=(why(given, placeholder="the relay is back" if verb == "retry" else "the campaign is over"),),
        hidden=hidden, danger=verb == "discard",
    )  # fmt: skip


def _filter(given: Given, caller: Caller) -> emails.DeadFilter:
    chosen = emails.DeadFilter(
        stream=given.one("stream") or None,
        site=given.one("site") or None,
        reason=given.one("reason") or None,
        template=given.one("template") or None,
        recipient=given.one("recipient") or None,
        text=given.one("text") or None,
        died_after=given.since("died"),
    )
    return within_reach(caller, chosen)


def _kept(given: Given) -> dict[str, str]:
    """The parts of a filter that are set, as a link repeats them."""
    return {name: text for name in FILTERS if (text := given.one(name))}


HANDLERS = (show_dead, ask_retry, retry, ask_discard, discard)
