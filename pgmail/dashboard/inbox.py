"""The inbox page of the sandbox: captured mail as a list, and each mail as HTML, text, headers and source.

    /                      the list; ?q= searches, ?page= turns pages
    /mail/ID               the list and one mail; ?view=html, text, headers or source
    /mail/ID/html          the mail's own HTML, for the frame that locks it up
    /mail/ID/file/N        an attachment, always as a download

What can go wrong: mail is hostile until proven otherwise. Its HTML is shown in a sandboxed frame without
origin, scripts, forms or network: the only pictures are those that came with it. Pages have no scripts at all
and say so in their policy (CSP level 3). Requests for other host names are refused, so that no site can reach
this one by a name of its own.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import Any, Protocol
from urllib.parse import quote, urlencode

from jinja2 import Environment, FunctionLoader
from litestar import Litestar, MediaType, Request, Response, get
from litestar.datastructures import State
from litestar.exceptions import NotFoundException

Asked = Request[Any, Any, Any]

PER_PAGE = 50
VIEWS = ("html", "text", "headers", "source")
LIVELY_SECONDS = 5.0  # since the newest mail: the list is asked for again by itself
REFRESH_SECONDS = 2
TINTS = 8

PAGE_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self' data:; frame-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
MAIL_POLICY = (
    "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'; font-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'self'"
)
_PAGE = re.compile("[1-9][0-9]{0,5}")
_ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Mails(Protocol):
    """Where the mail comes from; `sandbox.inbox.Inbox` is one, and has the shapes of what is returned."""

    def search(self, query: str = "", *, start: int = 0, count: int = 50) -> tuple[list[Any], int]:
        """Mails, newest first, and how many there are."""

    def open(self, id_: str) -> Any | None:
        """One mail."""

    def file(self, id_: str, number: int) -> Any | None:
        """One attachment."""


def create_inbox(mails: Mails) -> Litestar:
    """Return the application."""
    return Litestar(
        [show_list, show_mail, show_html, show_file, show_style],
        state=State({"mails": mails}),
        before_request=_only_here,
        exception_handlers={NotFoundException: _not_found},
        openapi_config=None,
        logging_config=None,
        debug=False,
        pdb_on_exception=False,
    )


@get("/", sync_to_thread=True)
def show_list(request: Asked) -> Response[str]:
    """The list alone."""
    facts = _list(request)
    headers = {}
    newest = facts["newest"]
    if not facts["q"] and facts["page"] == 1 and (newest is None or _age_seconds(newest) < LIVELY_SECONDS):
        headers["Refresh"] = str(REFRESH_SECONDS)
    return _page(facts, headers)


@get("/mail/{id_:str}", sync_to_thread=True)
def show_mail(request: Asked) -> Response[str]:
    """The list, and one mail beside it."""
    mail = _opened(request)
    views = [name for name in VIEWS if name not in ("html", "text") or getattr(mail, name) is not None]
    view = request.query_params.get("view")
    if view not in views:
        view = views[0]
    return _page(_list(request) | {"mail": mail, "view": view, "views": views})


@get("/mail/{id_:str}/html", sync_to_thread=True)
def show_html(request: Asked) -> Response[str]:
    """The mail's HTML as it came, with its own pictures, under a policy that lets it do nothing."""
    mail = _opened(request)
    if mail.html is None:
        raise NotFoundException
    return Response(
        mail.html, media_type=MediaType.HTML, headers=_ALWAYS | {"Content-Security-Policy": MAIL_POLICY}
    )


@get("/mail/{id_:str}/file/{number:int}", sync_to_thread=True)
def show_file(request: Asked) -> Response[bytes]:
    """An attachment. Never shown in place: it might be HTML."""
    file = _mails(request).file(request.path_params["id_"], request.path_params["number"])
    if file is None:
        raise NotFoundException
    return Response(
        file.body,
        media_type="application/octet-stream",
        headers=_ALWAYS
        | {
            "Content-Disposition": f"attachment; filename*=UTF-8''{quote(file.filename, safe='')}",
            "Content-Security-Policy": "sandbox; default-src 'none'",
        },
    )


@get("/inbox.css", sync_to_thread=False)
def show_style() -> Response[str]:
    """The one style sheet."""
    return Response(_resource("inbox.css"), media_type="text/css; charset=utf-8", headers=_ALWAYS)


async def _only_here(request: Asked) -> Response[str] | None:
    """Refuse requests under names that are not this machine's own: another site's page could send them."""
    if request.url.hostname in ("127.0.0.1", "localhost", "::1"):
        return None
    return Response("This page answers on 127.0.0.1 only.\n", media_type=MediaType.TEXT, status_code=421)


def _not_found(_: Asked, __: Exception) -> Response[str]:
    """Whatever it was, it is not here: a page like the others."""
    html = _template().render(missing=True, mail=None, mails=[], total=0, q="", page=1, pages=1, link=_link)
    return _html(html, status_code=404)


def _mails(request: Asked) -> Mails:
    mails: Mails = request.app.state["mails"]
    return mails


def _opened(request: Asked) -> Any:
    mail = _mails(request).open(request.path_params["id_"])
    if mail is None:
        raise NotFoundException
    return mail


def _list(request: Asked) -> dict[str, Any]:
    """What the page needs for its list: that part of the mails which the query asks for."""
    query = request.query_params.get("q", "")
    asked = request.query_params.get("page", "")
    page = int(asked) if _PAGE.fullmatch(asked) else 1
    found, total = _mails(request).search(query, start=(page - 1) * PER_PAGE, count=PER_PAGE)
    return {
        "mails": found,
        "total": total,
        "newest": found[0] if found else None,
        "q": query,
        "page": page,
        "pages": max(1, math.ceil(total / PER_PAGE)),
        "mail": None,
        "link": lambda path, **more: _link(path, **{"q": query, "page": page} | more),
    }


def _page(facts: dict[str, Any], headers: dict[str, str] | None = None) -> Response[str]:
    return _html(_template().render(facts), headers=headers)


def _html(html: str, *, headers: dict[str, str] | None = None, status_code: int = 200) -> Response[str]:
    return Response(
        html,
        media_type=MediaType.HTML,
        status_code=status_code,
        headers=_ALWAYS | {"Content-Security-Policy": PAGE_POLICY} | (headers or {}),
    )


def _link(path: str, **query: object) -> str:
    """A path with the parts of a query that are not what they are anyway."""
    kept = {name: value for name, value in query.items() if value and not (name == "page" and value == 1)}
    return f"{path}?{urlencode(kept)}" if kept else path


def _age_seconds(listed: Any) -> float:
    at: datetime = listed.at
    return (datetime.now(UTC) - at).total_seconds()


def _initial(listed: Any) -> str:
    """The letter in the circle."""
    return next((char for char in listed.sender if char.isalnum()), "?").upper()


def _tint(listed: Any) -> int:
    """One of a few colours, the same for the same sender."""
    sender: str = listed.sender
    return sum(sender.encode()) % TINTS


def _size(octets: int) -> str:
    """Octets for people: 512 B, 3.4 kB."""
    if octets < 1000:
        return f"{octets} B"
    return f"{octets / 1000:.1f} kB" if octets < 1_000_000 else f"{octets / 1_000_000:.1f} MB"


def _resource(name: str) -> str:
    return (files("pgmail.dashboard") / name).read_text(encoding="utf-8")


@cache
def _template() -> Any:
    environment = Environment(
        loader=FunctionLoader(_resource), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(initial=_initial, tint=_tint, size=_size)
    return environment.get_template("inbox.html")
