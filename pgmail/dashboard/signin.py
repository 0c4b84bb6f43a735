"""Signing in with an API key, and out again.

What can go wrong: somebody tries keys. Tries count by address, slow down and are told as those of the API are
(`access.guesses`), since it is the same keyring that is asked. A key that may neither read nor manage is let in by no
page, so it is refused here, with the reason.

A session may end while somebody is typing. Then the page's script asks here for JSON: it signs in beside the form, or
learns the token of a session that was begun in another tab, and nothing of what was typed is lost. Other sites can ask
too, and read nothing: no answer here names another origin.
"""

from __future__ import annotations

from typing import Any

from litestar import MediaType, Request, Response, get, post
from litestar.datastructures import Cookie

from pgmail.access.origin import inside, read
from pgmail.dashboard.frame import ALWAYS, html, rendered
from pgmail.dashboard.guard import (
    SEE,
    NotSignedIn,
    caller_behind,
    may,
    need_own_origin,
    session_of,
    sessions_of,
)
from pgmail.dashboard.menu import ROOT
from pgmail.dashboard.session import COOKIE, SECONDS
from pgmail.errors import Refused
from pgmail.store.keys import Caller

AnyRequest = Request[Any, Any, Any]


@get("/sign-in")
async def show_sign_in(request: AnyRequest) -> Response[Any]:
    """The form, or the overview for who is signed in already."""
    to = request.query_params.get("next", "")
    session = await session_of(request)
    if session is None:
        return _form(request, to)
    try:
        caller = await caller_behind(request, session)
    except NotSignedIn:
        return _form(request, to, "You were signed out: the API key was revoked or has expired.")
    except Refused as fault:
        return _form(request, to, _sentence(fault.message))
    if _by_script(request):
        return await _token(request, caller, session.token)
    return _go(_inside(to))


@post("/sign-in", status_code=303)
async def sign_in(request: AnyRequest) -> Response[Any]:
    """Begin a session with the key of the form."""
    need_own_origin(request)
    form = await request.form()
    to, key = str(form.get("next", "")), str(form.get("key", "")).strip()
    address = request.app.state.origins.of(request.scope)
    try:
        caller = await request.app.state.keyring.caller(f"Bearer {key}", address)
    except Refused as fault:
        because = "Enter an API key." if fault.code == "missing_api_key" else _sentence(fault.message)
        return _form(request, to, because, fault.status)
    if not may(caller, *SEE, test=True):
        because = "This API key may neither read nor manage, so there is nothing to show."
        return _form(request, to, because, 403)
    begun = await sessions_of(request).begin(caller)
    answer = await _token(request, caller, begun) if _by_script(request) else _go(_inside(to))
    answer.set_cookie(_cookie(request, begun, SECONDS))
    return answer


@post("/sign-out", status_code=303, scope=("send", *SEE), test=True)
async def sign_out(request: AnyRequest) -> Response[str]:
    """End the session in this browser."""
    answer = _go(f"{ROOT}/sign-in")
    answer.set_cookie(_cookie(request, "", 0))
    return answer


def secure(request: AnyRequest) -> bool:
    """Tell whether the browser speaks HTTPS: to us, or to a proxy that we trust and that says so."""
    if request.url.scheme == "https":
        return True
    client = request.scope.get("client")
    peer = read(client[0] if client else None)
    trusted = request.app.state.trusted
    return (
        peer is not None
        and inside(peer, trusted)
        and request.headers.get("x-forwarded-proto", "").rpartition(",")[2].strip().lower() == "https"
    )


def _cookie(request: AnyRequest, value: str, seconds: int) -> Cookie:
    return Cookie(
        COOKIE, path=ROOT, value=value, max_age=seconds, httponly=True, samesite="lax", secure=secure(request)
    )


def _by_script(request: AnyRequest) -> bool:
    return "application/json" in request.headers.get("accept", "")


async def _token(request: AnyRequest, caller: Caller, token: str) -> Response[Any]:
    """What a page goes on with: the session's token, and whose page it may be."""
    session = await sessions_of(request).read(token)
    csrf = "" if session is None else await sessions_of(request).csrf(session)
    return _json({"csrf": csrf, "tenant": str(caller.tenant_id)})


def _json(facts: dict[str, str], status_code: int = 200) -> Response[Any]:
    return Response(facts, media_type=MediaType.JSON, status_code=status_code, headers=dict(ALWAYS))


def _form(request: AnyRequest, to: str, because: str = "", status_code: int = 200) -> Response[Any]:
    if _by_script(request):
        return _json(
            {"because": because or "You are signed out."}, 401 if status_code == 200 else status_code
        )
    return html(rendered("signin.html", next=to, because=because), status_code=status_code)


def _go(to: str) -> Response[str]:
    return html("", status_code=303, headers={"Location": to})


def _inside(to: str) -> str:
    """A path of the dashboard, whatever was asked for: nobody is sent to another site from here."""
    plain = to.startswith((f"{ROOT}/", f"{ROOT}?")) and not any(
        ord(char) < 0x21 or char == "\\" for char in to
    )
    return to if plain else ROOT


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."
