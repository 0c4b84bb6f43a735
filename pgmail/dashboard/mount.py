"""The dashboard as a guest of the API's server: its routes under one guard, and what they keep.

Pages stand in `PAGES`, each module's handlers in a line; what needs no session stands in `OPEN`.
"""

from __future__ import annotations

from typing import Any

from litestar import Request, Router, get
from litestar.exceptions import HTTPException, NotFoundException

from pgmail.access.mount import Mount, Rooms
from pgmail.access.origin import networks
from pgmail.dashboard import email, emails, overview, preview, signin, static
from pgmail.dashboard.frame import answer
from pgmail.dashboard.guard import SEE, guard
from pgmail.dashboard.live import Hub
from pgmail.dashboard.manage import pages as manage
from pgmail.dashboard.menu import ROOT
from pgmail.dashboard.session import Sessions


@get("/{rest:path}", scope=("send", *SEE), sync_to_thread=False)
def nothing_here(request: Request[Any, Any, Any]) -> None:  # noqa: ARG001 - it has a path parameter
    """Any other path below: a page that says so."""
    raise NotFoundException


PAGES: tuple[Any, ...] = (
    *(overview.show_overview, overview.stream_overview),
    *(emails.show_emails, emails.stream_emails),
    *(
        email.show_email,
        email.stream_email,
        email.cancel_email,
        email.hold_email,
        email.release_email,
        email.retry_email,
    ),
    preview.show_html,
    *manage.HANDLERS,
    signin.sign_out,
    nothing_here,
)
OPEN: tuple[Any, ...] = (signin.show_sign_in, signin.sign_in, static.show_asset)


def mount(rooms: Rooms) -> Mount:
    """Return the dashboard's routes and state."""
    faults: Any = {Exception: answer, HTTPException: answer}
    shared: dict[str, Any] = {"path": ROOT, "exception_handlers": faults, "include_in_schema": False}
    return Mount(
        [
            Router(guards=[guard], route_handlers=list(PAGES), **shared),
            Router(route_handlers=list(OPEN), **shared),
        ],
        {
            "sessions": Sessions(rooms.database),
            "live": Hub(rooms.stopping),
            "message_id_domain": rooms.settings.message_id_domain,
            "trusted": networks(rooms.settings.trusted_proxies),
        },
        ROOT,
    )
