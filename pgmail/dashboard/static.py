"""Files that pages load: one style sheet, two scripts, an icon. They stand in `assets/`, with their licences.

What can go wrong: a browser keeps an old file beside a new page. So each is linked by a version made of its octets, and
what is asked for by its version may be kept for a year.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from typing import Any

from litestar import Request, Response, get
from litestar.exceptions import NotFoundException

from pgmail.dashboard.menu import ROOT

_TYPES = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}
NAMES = ("pgmail.css", "manage.css", "app.js", "manage.js", "htmx.min.js", "icon.svg")
_KEPT = "public, max-age=31536000, immutable"


@get("/assets/{name:str}", sync_to_thread=False)
def show_asset(request: Request[Any, Any, Any]) -> Response[bytes]:
    """Return a file."""
    name = request.path_params["name"]
    if name not in NAMES:
        raise NotFoundException
    body, version = _read(name)
    known = request.query_params.get("v") == version
    headers = {
        "Cache-Control": _KEPT if known else "no-cache",
        "X-Content-Type-Options": "nosniff",
        "Cross-Origin-Resource-Policy": "same-origin",
    }
    return Response(body, media_type=_TYPES[name.rpartition(".")[2]], headers=headers)


def asset(name: str) -> str:
    """Return the path of a file in its present version."""
    return f"{ROOT}/assets/{name}?v={_read(name)[1]}"


@cache
def _read(name: str) -> tuple[bytes, str]:
    body = (files("pgmail.dashboard") / "assets" / name).read_bytes()
    return body, hashlib.sha256(body).hexdigest()[:16]
