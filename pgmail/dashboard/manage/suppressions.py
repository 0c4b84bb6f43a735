"""Suppressions: who gets no mail and why; adding, removing, and lists in files.

An import keeps what can be read of a file and tells of the rest by line. What can go wrong: a file of any length,
so one of more than `MOST_BYTES` is refused here and left to `pgmail suppression import`.
"""

from __future__ import annotations

import asyncio
import io
from datetime import UTC, datetime
from itertools import islice
from typing import Any
from urllib.parse import urlencode

from litestar import Request, Response, get, post
from litestar.response import Stream

from pgmail.access.reach import need_target
from pgmail.dashboard.frame import page
from pgmail.dashboard.guard import SEE, caller_of, database_of, may
from pgmail.dashboard.manage.questions import MANAGE, Ask, Field, Given, act, ask, given_of, told, why
from pgmail.domain import address as addresses
from pgmail.domain.suppression_file import Bad, Entry, read
from pgmail.errors import Refused
from pgmail.store import streams
from pgmail.store import suppressions as store
from pgmail.store.keys import Caller
from pgmail.store.tenant import acting_as

AnyRequest = Request[Any, Any, Any]

HOME = "/dashboard/suppressions"
PER_PAGE = 50
MOST_BYTES = 8 * 1024 * 1024
CHUNK = 2_000  # rows a statement
SHOWN = 50  # faults of a file that are told
ENDS = (
    ("", "I remove it"),
    ("604800", "a week has passed"),
    ("2592000", "30 days have passed"),
    ("31536000", "a year has passed"),
)


@get("/suppressions", scope=SEE, test=False)
async def show_suppressions(request: AnyRequest) -> Response[Any]:
    """The page: a list by address."""
    given, caller = await given_of(request), caller_of(request)
    search, fault = given.one("q"), None
    address = None
    if search:
        try:
            address = addresses.parse(search).address
        except ValueError as error:
            fault = f"{error}: give a whole address, such as ada@example.org"
    after = given.one("after")
    async with acting_as(database_of(request), caller) as connection:
        rows = (
            []
            if fault
            else await store.listing(
                connection,
                limit=PER_PAGE + 1,
                after=(after, given.one("after_stream")) if after else None,
                address=address,
                stream=given.one("stream") or None,
                reason=given.one("reason") or None,
            )
        )
        named = [row.name for row in await streams.listing(connection)]
    kept = {name: text for name in ("q", "stream", "reason") if (text := given.one(name))}
    return page(
        request, "manage/suppressions.html", title="Suppressions", rows=rows[:PER_PAGE],
        more=len(rows) > PER_PAGE, kept=kept, query=urlencode(kept), fault=fault, streams=named, reasons=store.REASONS,
        after=after, may_act=may(caller, MANAGE),
    )  # fmt: skip


@get("/suppressions/add", scope=MANAGE)
async def ask_add(request: AnyRequest) -> Response[Any]:
    """Ask whom, and why."""
    return ask(request, await _adding(request, await given_of(request)))


@post("/suppressions/add", scope=MANAGE, status_code=200)
async def add(request: AnyRequest) -> Response[Any]:
    """Suppress an address."""
    given, caller = await given_of(request), caller_of(request)

    async def deed() -> str:
        address, stream = given.one("address"), given.one("stream")
        if not address:
            raise Refused("missing_field", "/address", "an address is required")
        need_target(caller, stream)
        after = given.seconds("seconds", ENDS, "choose until when")
        async with acting_as(database_of(request), caller) as connection:
            normal = await store.add(
                connection, address, reason=given.one("reason") or "manual", source=given.one("source") or None,
                stream=stream, expires_at=None if after is None else datetime.now(UTC) + after,
            )  # fmt: skip
        return (
            f"{normal} gets no mail {f'of the stream {stream}' if stream else 'of any stream'} from now on."
        )

    return await act(request, await _adding(request, given), deed)


@get("/suppressions/remove", scope=MANAGE)
async def ask_remove(request: AnyRequest) -> Response[Any]:
    """Ask why it may have mail again."""
    return ask(request, _removing(await given_of(request)))


@post("/suppressions/remove", scope=MANAGE, status_code=200)
async def remove(request: AnyRequest) -> Response[Any]:
    """Let an address have mail again."""
    given, caller = await given_of(request), caller_of(request)

    async def deed() -> str:
        address, stream = given.one("address"), given.one("stream")
        need_target(caller, stream)
        async with acting_as(database_of(request), caller) as connection:
            if not await store.remove(connection, address, stream=stream, reason=given.reason()):
                raise Refused("not_found", "/address", f"{address} is not suppressed any more", 404)
        return f"{address} may have mail again."

    return await act(request, _removing(given), deed)


@get("/suppressions/import", scope=MANAGE)
async def ask_import(request: AnyRequest) -> Response[Any]:
    """Ask for a file."""
    return ask(request, await _importing(request, await given_of(request)))


@post("/suppressions/import", scope=MANAGE, status_code=200)
async def import_file(request: AnyRequest) -> Response[Any]:
    """Suppress all addresses of a file, and tell what could not be read of it."""
    given = await given_of(request)
    question = await _importing(request, given)
    try:
        outcome = await _import(request, given)
    except Refused as refused:
        return ask(request, question, refused)
    return told(request, "manage/suppressions_import.html", title="Imported", **outcome)


async def _import(request: AnyRequest, given: Given) -> dict[str, Any]:
    caller, stream, reason = caller_of(request), given.one("stream"), given.one("reason") or "manual"
    need_target(caller, stream)
    upload = given.file("file")
    if upload is None or not upload.filename:
        raise Refused("missing_field", "/file", "choose a file")
    octets = await upload.read(MOST_BYTES + 1)
    if len(octets) > MOST_BYTES:
        size = f"{MOST_BYTES // 1024 // 1024} MB"
        because = f"more than {size}: import it by `pgmail suppression import FILE`, which takes files of any length"
        raise Refused("too_large", "/file", because, 413)
    # What is no UTF-8 becomes U+FFFD, and a fault of its row.
    rows = read(io.StringIO(octets.decode("utf-8", "replace"), newline=""))
    counts = {"rows": 0, "added": 0, "changed": 0, "unchanged": 0, "refused": 0}
    faults: list[Bad] = []
    audit = None
    while chunk := await asyncio.to_thread(lambda: list(islice(rows, CHUNK))):
        counts["rows"] += len(chunk)
        found: list[Entry] = []
        for row in chunk:
            if isinstance(row, Bad):
                faults.append(row)
            else:
                fault = _out_of_reach(caller, row, row.stream or stream)
                if fault is None:
                    found.append(row)
                else:
                    faults.append(fault)
        entries = [
            store.Entry(
                row.address,
                row.stream or stream,
                row.reason or reason,
                row.source,
                row.created_at,
                row.expires_at,
            )
            for row in found
        ]
        async with acting_as(database_of(request), caller) as connection:
            answer = await store.add_many(connection, entries, strict=False, audit=audit)
        audit = answer.audit
        for name in ("added", "changed", "unchanged"):
            counts[name] += getattr(answer, name)
        faults += [
            Bad(
                found[fault["position"]].line,
                found[fault["position"]].address,
                fault["code"],
                fault["message"],
            )
            for fault in answer.faults
        ]
    counts["refused"] = len(faults)
    return {"counts": counts, "faults": sorted(faults)[:SHOWN], "filename": upload.filename}


def _out_of_reach(caller: Caller, row: Entry, stream: str) -> Bad | None:
    """Why a row may not be stored by this key, or None."""
    try:
        need_target(caller, stream)
    except Refused as refused:
        return Bad(row.line, row.address, refused.code, refused.message)
    return None


@get("/suppressions/export", scope=SEE, test=False)
async def export(request: AnyRequest) -> Stream:
    """Write all entries that suppress something as CSV, in their order."""
    given, database, caller = await given_of(request), database_of(request), caller_of(request)
    text = await store.export(
        lambda: acting_as(database, caller),
        stream=given.one("stream") or None,
        reason=given.one("reason") or None,
    )
    headers = {
        "Content-Disposition": "attachment; filename=suppressions.csv",
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
    }
    return Stream(text, media_type="text/csv", headers=headers)


async def _streams(request: AnyRequest, value: str) -> Field:
    caller = caller_of(request)
    async with acting_as(database_of(request), caller) as connection:
        names = [row.name for row in await streams.listing(connection)]
    allowed = [name for name in names if caller.streams is None or name in caller.streams]
    every = [("", "of all streams")] if caller.streams is None else []
    return Field(
        "stream", "Mail", "select", value=value, options=[*every, *((name, f"of {name}") for name in allowed)]
    )


async def _adding(request: AnyRequest, given: Given) -> Ask:
    return Ask(
        title="Suppress an address",
        no="Not now",
        action=f"{HOME}/add",
        button="Suppress",
        back=HOME,
        words=("Mail to it ends as suppressed, what waits in the queue too. An entry that is there is replaced.",),
        fields=(
            Field(
                "address", "Address", "email", value=given.one("address"), required=True, longest=254,
                placeholder="ada@example.org", focus=True,
            ),
            await _streams(request, given.one("stream")),
            Field("reason", "Reason", "select", value=given.one("reason") or "manual",
                  options=[(word, word) for word in store.REASONS]),
            Field("seconds", "Until", "select", value=given.one("seconds"), options=ENDS),
            Field("source", "Note", value=given.one("source"), longest=1_000,
                  help="Where this comes from: a ticket, a reply, a list."),
        ),
    )  # fmt: skip


def _removing(given: Given) -> Ask:
    address, stream = given.one("address"), given.one("stream")
    where = f"of the stream {stream}" if stream else "of all streams"
    return Ask(
        title=f"Let {address} have mail again?",
        action=f"{HOME}/remove",
        button="Remove",
        back=HOME,
        words=(
            f"It is suppressed for mail {where}.",
            "Writing to people who complained or unsubscribed costs reputation, and may be against the law.",
        ),
        fields=(why(given, placeholder="they asked for it, ticket 4711"),),
        hidden=(("address", address), ("stream", stream)),
        danger=True,
    )


async def _importing(request: AnyRequest, given: Given) -> Ask:
    return Ask(
        title="Import suppressions",
        no="Not now",
        action=f"{HOME}/import",
        button="Import",
        back=HOME,
        words=(
            "CSV with a header, one address a line, or JSON lines.",
            "Exports of SendGrid, Mailgun, Amazon SES and Postmark are understood as they are.",
        ),
        fields=(
            Field("file", "File", "file", required=True, help="UTF-8, up to 8 MB."),
            await _streams(request, given.one("stream")),
            Field("reason", "Reason, where a row has none", "select", value=given.one("reason") or "manual",
                  options=[(word, word) for word in store.REASONS]),
        ),
        files=True,
    )  # fmt: skip


HANDLERS = (show_suppressions, ask_add, add, ask_remove, remove, ask_import, import_file, export)
