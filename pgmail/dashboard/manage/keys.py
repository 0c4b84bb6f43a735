"""API keys: make, rotate and revoke, with a key that has the scope admin. A new key is shown once.

What can go wrong: the key that signed in here is revoked with the others; then this session ends within a second, and
the question says so.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from litestar import Request, Response, get, post

from pgmail.dashboard.frame import page
from pgmail.dashboard.guard import caller_of, database_of
from pgmail.dashboard.manage.questions import Ask, Field, Given, act, ask, given_of, once, told, why
from pgmail.domain import keylimits
from pgmail.domain.keys import SCOPES, Scope
from pgmail.errors import Refused
from pgmail.store import keys as store
from pgmail.store.tenant import acting_as

AnyRequest = Request[Any, Any, Any]

HOME = "/dashboard/keys"
MEANS = {
    "send": "hand email over",
    "read": "see email, events and settings",
    "manage": "change templates, streams, suppressions, pauses",
    "admin": "everything, keys too",
}
ENDS = (
    ("", "never"), ("604800", "in a week"), ("2592000", "in 30 days"), ("7776000", "in 90 days"),
    ("31536000", "in a year"),
)  # fmt: skip
OVERLAPS = (
    ("0", "at once"), ("3600", "in an hour"), ("86400", "in a day"), ("604800", "in a week"),
    ("2592000", "in 30 days"),
)  # fmt: skip


@get("/keys", scope="admin")
async def show_keys(request: AnyRequest) -> Response[Any]:
    """The page: keys that hold, and those that ended."""
    caller, now = caller_of(request), datetime.now(UTC)
    async with acting_as(database_of(request), caller) as connection:
        rows = await store.listing(connection)
    ended = [row for row in rows if row.revoked_at or (row.expires_at and row.expires_at <= now)]
    live = [row for row in rows if row not in ended]
    return page(
        request,
        "manage/keys.html",
        title="API keys",
        live=live,
        ended=ended[::-1],
        own=caller.key_id,
        now=now,
    )


@get("/keys/create", scope="admin", test=True)
async def ask_create(request: AnyRequest) -> Response[Any]:
    """Ask for whom, and what it may do."""
    return ask(request, _creating(await given_of(request), test=caller_of(request).test))


@post("/keys/create", scope="admin", status_code=200, test=True)
async def create(request: AnyRequest) -> Response[Any]:
    """Make a key and show it, this once."""
    given, caller = await given_of(request), caller_of(request)
    try:
        limits = store.Limits(
            scopes=_scopes(given),
            test=given.one("test") == "yes",
            streams=given.words("streams") or None,
            from_domains=[_domain(text) for text in given.words("from_domains")] or None,
            networks=given.words("networks") or None,
            expires_at=_expiry(given),
        )
        async with acting_as(database_of(request), caller) as connection:
            await once(connection, given)
            made = await store.create(connection, _name(given), limits)
    except Refused as refused:
        return ask(request, _creating(given, test=caller.test), refused)
    return told(request, "manage/key_made.html", title="A new key", made=made, ends=None)


@get("/keys/rotate", scope="admin", test=True)
async def ask_rotate(request: AnyRequest) -> Response[Any]:
    """Ask when the old one ends."""
    return ask(request, _rotating(await given_of(request)))


@post("/keys/rotate", scope="admin", status_code=200, test=True)
async def rotate(request: AnyRequest) -> Response[Any]:
    """Make a key with the limits of another, and show it, this once."""
    given, caller = await given_of(request), caller_of(request)
    try:
        overlap = given.seconds("overlap", OVERLAPS, "choose when the old key ends") or timedelta()
        async with acting_as(database_of(request), caller) as connection:
            made, ends = await store.rotate(connection, given.uuid("id"), overlap, given.reason())
    except Refused as refused:
        return ask(request, _rotating(given), refused)
    return told(request, "manage/key_made.html", title="A new key", made=made, ends=ends)


@get("/keys/revoke", scope="admin", test=True)
async def ask_revoke(request: AnyRequest) -> Response[Any]:
    """Ask why."""
    given = await given_of(request)
    return ask(request, _revoking(given, own=given.one("id") == str(caller_of(request).key_id)))


@post("/keys/revoke", scope="admin", status_code=200, test=True)
async def revoke(request: AnyRequest) -> Response[Any]:
    """Revoke a key for good."""
    given, caller = await given_of(request), caller_of(request)

    async def deed() -> str:
        wanted = given.uuid("id")
        async with acting_as(database_of(request), caller) as connection:
            if not await store.revoke(connection, wanted, given.reason()):
                raise Refused("not_found", "/id", "this key had ended already", 404)
        return f"Key {given.one('name')} is revoked: every process refuses it within a second."

    return await act(request, _revoking(given, own=given.one("id") == str(caller.key_id)), deed)


def _scopes(given: Given) -> list[Scope]:
    chosen = given.many("scopes")
    found: list[Scope] = [scope for scope in SCOPES if scope in chosen]
    if not found:
        raise Refused("missing_field", "/scopes", "choose what it may do")
    return found


def _domain(text: str) -> str:
    try:
        return keylimits.normalise(text)
    except ValueError as error:
        raise Refused("invalid_domain", "/from_domains", f"{text[:80]}: {error}") from None


def _expiry(given: Given) -> datetime | None:
    after = given.seconds("ends", ENDS, "choose when it ends")
    return None if after is None else datetime.now(UTC) + after


def _name(given: Given) -> str:
    name = given.one("name")
    if not 1 <= len(name) <= 200:
        raise Refused("invalid_field", "/name", "say who uses it, in 1 to 200 characters")
    return name


def _creating(given: Given, *, test: bool) -> Ask:
    kinds = (("yes", "test: delivers to the sandbox only"),) if test else (
        ("no", "live"), ("yes", "test: delivers to the sandbox only"),
    )  # fmt: skip
    return Ask(
        title="Make an API key",
        no="Not now",
        action=f"{HOME}/create",
        button="Make it",
        back=HOME,
        words=("It is shown once, right after this. It may have no more than the key that you signed in with.",),
        fields=(
            Field("name", "Who uses it", value=given.one("name"), required=True, longest=200, placeholder="web shop",
                  focus=True),
            Field("scopes", "What it may do", "checks", value=given.many("scopes") or ["send"],
                  options=[(scope, f"{scope}: {MEANS[scope]}") for scope in SCOPES]),
            Field("test", "Kind", "select", value=given.one("test") or kinds[0][0], options=kinds),
            Field("streams", "Streams", value=given.one("streams"), placeholder="all",
                  help="Only these, by name; empty is all."),
            Field("from_domains", "From domains", value=given.one("from_domains"), placeholder="all",
                  help="Only from these, such as example.com or *.example.com; empty is all."),
            Field("networks", "Networks", value=given.one("networks"), placeholder="anywhere",
                  help="Only from these addresses, such as 192.0.2.0/24; empty is anywhere."),
            Field("ends", "Ends", "select", value=given.one("ends"), options=ENDS),
        ),
    )  # fmt: skip


def _rotating(given: Given) -> Ask:
    return Ask(
        title=f"Rotate the key {given.one('name')}?",
        action=f"{HOME}/rotate",
        button="Rotate",
        back=HOME,
        words=(
            "A second key with the same limits is made and shown once; both hold until the old one ends.",
        ),
        fields=(
            Field(
                "overlap",
                "The old key ends",
                "select",
                value=given.one("overlap") or "86400",
                options=OVERLAPS,
            ),
            why(given, placeholder="every 90 days"),
        ),
        hidden=(("id", given.one("id")), ("name", given.one("name"))),
    )


def _revoking(given: Given, *, own: bool) -> Ask:
    words = ["Whoever uses it is refused within a second, for good. This cannot be undone."]
    if own:
        words.append("You signed in with this key: your session ends with it.")
    return Ask(
        title=f"Revoke the key {given.one('name')}?",
        action=f"{HOME}/revoke",
        button="Revoke",
        back=HOME,
        words=words,
        fields=(why(given, placeholder="it was in a log"),),
        hidden=(("id", given.one("id")), ("name", given.one("name"))),
        danger=True,
    )


HANDLERS = (show_keys, ask_create, create, ask_rotate, rotate, ask_revoke, revoke)
