"""The frame of all pages: the layout, what every answer carries, faults as pages and as toasts.

A page is `page(request, "name.html", **facts)`, a part of one `fragment(...)`, the answer to a change `done(...)`.
Their templates find the macros in `parts.html` and, besides `facts`:

    caller        whose session it is
    csrf          the session's token, for `<input type="hidden" name="csrf">` of a plain form
    may(scope)    whether the session's key may do what takes a scope
    here          the path of the page

What can go wrong: a page that shows what a stranger wrote. Templates are autoescaped throughout, the policy of every
answer (CSP level 3) allows scripts and styles from files of ours only, and mail is shown in a frame without rights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache, partial
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

import structlog
from jinja2 import Environment, PackageLoader, StrictUndefined
from litestar import MediaType, Response
from litestar.exceptions import HTTPException

from pgmail.dashboard import charts, words
from pgmail.dashboard.guard import AnyRequest, NotSignedIn, may
from pgmail.dashboard.menu import ROOT, menu_of
from pgmail.dashboard.static import asset
from pgmail.errors import DatabaseAway, Refused

log = structlog.get_logger()

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
# Not `no-referrer`: with that a browser says `Origin: null` when a form of ours is sent. Other sites are told nothing.
ALWAYS: Mapping[str, str] = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def page(request: AnyRequest, template: str, *, status_code: int = 200, **facts: Any) -> Response[str]:
    """Return a whole page, for a request that passed the guard."""
    return html(_render(request, template, facts), status_code=status_code)


def fragment(request: AnyRequest, template: str, **facts: Any) -> Response[str]:
    """Return a part of a page, which htmx puts where it was asked for."""
    return html(_render(request, template, facts))


def rendered(template: str, **facts: Any) -> str:
    """Return a template that needs nothing of a request: what goes to listeners of a live page."""
    return environment().get_template(template).render(facts)


def done(request: AnyRequest, text: str, to: str) -> Response[str]:
    """Answer a change that was made: `text` as a toast, and the page at the path `to`.

    Without scripts it is a redirect (303), which says nothing of its own.
    """
    if "hx-request" not in request.headers:
        return Response("", status_code=303, headers={"Location": to}, media_type=MediaType.HTML)
    where = {"path": to, "target": "#main", "select": "#main", "swap": "outerHTML show:none"}
    headers = {"HX-Trigger": json.dumps({"toast": {"text": text}}), "HX-Location": json.dumps(where)}
    return html("", headers=headers)


def html(text: str, *, status_code: int = 200, headers: Mapping[str, str] | None = None) -> Response[str]:
    """Return HTML under the pages' policy, unless `headers` bring another."""
    return Response(
        text, media_type=MediaType.HTML, status_code=status_code, headers={**ALWAYS, **(headers or {})}
    )


def link(path: str, **query: object) -> str:
    """Return a path with a query of what is not empty."""
    kept = {name: value for name, value in query.items() if value not in {None, ""}}
    return f"{path}?{urlencode(kept)}" if kept else path


def answer(request: AnyRequest, error: Exception) -> Response[str]:
    """Answer with a fault (an exception handler): the sign-in page, a toast for htmx, else a page."""
    htmx = "hx-request" in request.headers
    if isinstance(error, NotSignedIn):
        to = link(f"{ROOT}/sign-in", next=_next(request))
        return html("", status_code=401 if htmx else 303, headers={"HX-Redirect" if htmx else "Location": to})
    status, because = _judged(request, error)
    if htmx:
        body = rendered("toast.html", text=because)
        return html(body, status_code=status, headers={"HX-Retarget": "#toasts", "HX-Reswap": "beforeend"})
    facts = {"status": status, "title": HTTPStatus(status).phrase, "because": because}
    name = "fault.html" if request.scope.get("auth") is not None else "fault_bare.html"
    return html(_render(request, name, facts), status_code=status)


def _judged(request: AnyRequest, error: Exception) -> tuple[int, str]:
    if isinstance(error, Refused):
        return error.status, error.message
    if isinstance(error, DatabaseAway):
        return 503, "The database cannot be reached at this moment. Nothing is lost; load the page again."
    if isinstance(error, HTTPException) and error.status_code < 500:
        return error.status_code, "There is nothing here." if error.status_code == 404 else error.detail
    log.error("page failed", method=request.method, path=request.scope["path"], exc_info=error)
    return 500, "A fault of pgmail. Its log says more."


def _next(request: AnyRequest) -> str:
    """Where to go after signing in: the page that was asked for."""
    path: str = request.scope["path"]
    if request.method != "GET" or path.rstrip("/") == ROOT or "/live/" in path:
        return ""
    query = request.scope.get("query_string", b"").decode("latin-1")
    return f"{path}?{query}" if query else path


def _render(request: AnyRequest, template: str, facts: Mapping[str, Any]) -> str:
    caller = request.scope.get("auth")
    given = {
        "caller": caller,
        "csrf": request.state.get("csrf", ""),
        "may": partial(may, caller) if caller is not None else (lambda *_, **__: False),
        "here": request.scope["path"],
        "menu": [] if caller is None else menu_of(caller),
    }
    return environment().get_template(template).render({**given, **facts})


@cache
def environment() -> Environment:
    """Return what renders pages; templates stand in `templates/`."""
    made = Environment(
        loader=PackageLoader("pgmail.dashboard", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    made.filters.update(words.FILTERS)
    made.globals.update(root=ROOT, asset=asset, link=link, chart=charts.chart)
    return made
