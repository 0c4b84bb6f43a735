"""What stands before every page: a session whose key lives, the page's scope, and for changes that they were meant.

A handler says in its `scope` which scopes let a key ask for it, as the API's routes do; one that says nothing lets
nobody in. A key for tests is let in where something is only shown, and else where a handler says `test=True`.

Against changes that another site asks for in the user's name there are three things, each enough by itself: the
cookie is SameSite=Lax and a change is never a GET; the request's Origin must be this host; and it must bring a token
that is bound to the session (field `csrf`, or the header that htmx sends).

What can go wrong: a proxy that changes the Host header. Then Origin and Host differ and every change is refused; the
page says so, and ops/docs/dashboard.md what to set.
"""

from __future__ import annotations

import hmac
from typing import Any
from urllib.parse import urlsplit

from litestar import Request
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler

from pgmail.access import asked
from pgmail.access.keyring import need_scope
from pgmail.access.reach import need_live
from pgmail.dashboard.session import COOKIE, Session, Sessions
from pgmail.domain.keys import Scope
from pgmail.errors import Refused
from pgmail.store.keys import Caller

AnyRequest = Request[Any, Any, Any]
AnyConnection = ASGIConnection[Any, Any, Any, Any]

# Pages find these beside what else a session says; the API shares them.
SEE, CHANGE = asked.SEE, asked.CHANGE
caller_of, database_of = asked.caller_of, asked.database_of

CSRF_HEADER = "x-csrf-token"
CSRF_FIELD = "csrf"
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


class NotSignedIn(Refused):
    """There is no session, or it has ended: the way goes to the sign-in page."""

    def __init__(self, because: str = "sign in first") -> None:
        super().__init__("not_signed_in", "", because, 401)


class Stale(Refused):
    """The page's token is of another session: one that ended, or was followed by another."""

    def __init__(self) -> None:
        super().__init__("csrf", "", "this page is too old to change anything: load it again", 403)


async def guard(connection: AnyConnection, handler: BaseRouteHandler) -> None:
    """Let a request of a session pass, and say in `request.auth` whose it is (a Litestar guard).

    Raises NotSignedIn, and Refused (403): `missing_scope`, `live_only`, `csrf`, `network_not_allowed`.
    """
    state = connection.app.state
    address = connection.state.address = state.origins.of(connection.scope)
    session = await session_of(connection)
    if session is None:
        raise NotSignedIn
    connection.state.session = session
    connection.state.csrf = await sessions_of(connection).csrf(session)
    connection.scope["auth"] = await caller_behind(connection, session)
    need_scope(connection.scope["auth"], handler.opt.get("scope"))
    method = connection.scope.get("method", "GET")
    if not handler.opt.get("test", method in _SAFE):
        need_live(connection.scope["auth"])
    if method not in _SAFE:
        need_own_origin(connection)
        await _need_token(connection, connection.state.csrf)
    connection.state.address = address


async def session_of(connection: AnyConnection) -> Session | None:
    """Return the session of a request's cookie, if its signature is right and it has not ended."""
    cookie = connection.cookies.get(COOKIE)
    return await sessions_of(connection).read(cookie) if cookie else None


async def caller_behind(connection: AnyConnection, session: Session) -> Caller:
    """Return who a session speaks for. Raises NotSignedIn once its key has ended, Refused `network_not_allowed`."""
    address = connection.app.state.origins.of(connection.scope)
    try:
        caller = await connection.app.state.keyring.session(session.tenant_id, session.key_id, address)
    except Refused as fault:
        if fault.code == "signed_out":
            raise NotSignedIn(fault.message) from None
        raise
    found: Caller = caller._replace(source=address or "")
    return found


def need_own_origin(connection: AnyConnection) -> None:
    """Refuse (403 `csrf`) a change that another site asks for. Programs that are no browsers name no origin."""
    origin = connection.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != connection.headers.get("host", "").lower():
        raise Refused(
            "csrf", "", "this change was asked for by another site, or a proxy changed the Host header", 403
        )


def sessions_of(connection: AnyConnection) -> Sessions:
    """Return what reads sessions here."""
    found: Sessions = connection.app.state.sessions
    return found


def may(caller: Caller, *scopes: Scope, test: bool = False) -> bool:
    """Tell whether a caller may do what takes one of these scopes: which buttons a page shows."""
    return any(scope in caller.scopes for scope in scopes) and (test or not caller.test)


async def _need_token(connection: AnyConnection, wanted: str) -> None:
    given = connection.headers.get(CSRF_HEADER)
    if given is None:
        given = str(
            (await Request[Any, Any, Any](connection.scope, connection.receive).form()).get(CSRF_FIELD, "")
        )
    if not hmac.compare_digest(given.encode(), wanted.encode()):
        raise Stale
