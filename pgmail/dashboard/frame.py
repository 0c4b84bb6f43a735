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
import secrets
from collections.abc import Mapping
from functools import cache, partial
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode, urlsplit
from uuid import uuid4

import structlog
from jinja2 import Environment, PackageLoader, StrictUndefined
from litestar import MediaType, Response
from litestar.exceptions import HTTPException

from pgmail.dashboard import charts, words
from pgmail.dashboard.guard import AnyRequest, NotSignedIn, Stale, may
from pgmail.dashboard.menu import ROOT, menu_of
from pgmail.dashboard.static import asset
from pgmail.errors import DatabaseAway, Refused

log = structlog.get_logger()

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_NOTHING = "There is no such page, or what it showed is kept no longer. The menu leads to all there is."
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
    """Answer with a fault (an exception handler): the sign-in page, a toast for htmx, else a page.

    What a page's script asked for without a session is answered so that the script can tell: what is typed on the page
    is not to be lost by leaving it (`signed-out` and `stale` in app.js).
    """
    htmx = "hx-request" in request.headers
    if isinstance(error, NotSignedIn):
        return _signed_out(request, htmx=htmx)
    status, because = _judged(request, error)
    if isinstance(error, Stale) and htmx:
        return html("", status_code=status, headers={"HX-Trigger": "stale", "HX-Reswap": "none"})
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
        return error.status_code, _NOTHING if error.status_code == 404 else error.detail
    id_ = secrets.token_hex(8)
    log.error("page failed", id=id_, method=request.method, path=request.scope["path"], exc_info=error)
    return 500, f"A fault of pgmail, nothing that you did. Its log says more, under the id {id_}."


def _signed_out(request: AnyRequest, *, htmx: bool) -> Response[str]:
    if htmx:
        return html("", status_code=401, headers={"HX-Trigger": "signed-out", "HX-Reswap": "none"})
    if "text/event-stream" in request.headers.get("accept", ""):
        # A status would tell the browser's script nothing, and make it try for ever.
        body = 'event: end\ndata: "signed_out"\n\n'
        return Response(body, media_type="text/event-stream", headers=dict(ALWAYS))
    to = link(f"{ROOT}/sign-in", next=_next(request))
    return html("", status_code=303, headers={"Location": to})


def _next(request: AnyRequest) -> str:
    """Where to go after signing in: the page that was asked for, or on which something was to be changed."""
    path: str = request.scope["path"]
    if request.method != "GET":
        came = urlsplit(request.headers.get("referer", ""))
        here = came.netloc.lower() == request.headers.get("host", "").lower()
        return _asked(came.path, came.query) if here and came.path.startswith(f"{ROOT}/") else ""
    if path.rstrip("/") == ROOT or "live" in path.split("/"):
        return ""
    return _asked(path, request.scope.get("query_string", b"").decode("latin-1"))


def _asked(path: str, query: str) -> str:
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
    made.globals.update(root=ROOT, asset=asset, link=link, chart=charts.chart, new_id=uuid4)
    return made
