"""`GET /metrics` on the API's own port: the figures of this process, for who has no way to the listener beside it.

Read by a key with the scope `read`, `manage` or `admin`, or without one from PGMAIL_METRICS_NETWORKS. It tells
nothing of any tenant's mail; the fleet's figures are told by the process that leads, on its own listener
(ops/docs/metrics.md).

What can go wrong: several processes share the port, and each scrape would meet another of them, whose counters are
others. Then nobody is told anything here but where to ask instead.
"""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

from litestar import Request, Response, get

from pgmail.access.keyring import need_scope
from pgmail.access.origin import inside, read
from pgmail.api.openapi import operation
from pgmail.config import Settings
from pgmail.errors import Refused
from pgmail.metrics.page import Page

SCOPES = ("read", "manage", "admin")


class Shown:
    """The page, and who may read it here."""

    def __init__(self, settings: Settings, page: Page) -> None:
        self.page = page
        self.networks = tuple(ip_network(word) for word in settings.metrics_networks.split())
        self.shared = settings.api_processes > 1


@get("/metrics", media_type="text/plain", operation_class=operation())
async def show_metrics(request: Request[Any, Any, Any]) -> Response[bytes]:
    """Tell the figures of this process, as Prometheus reads them."""
    state = request.app.state
    shown: Shown = state.metrics
    origin = state.origins.of(request.scope)
    address = read(origin)
    if address is None or not inside(address, shown.networks):
        need_scope(await state.keyring.caller(request.headers.get("authorization"), origin), SCOPES)
    if shown.shared:
        because = (
            "several processes share this port; each tells its own figures at PGMAIL_METRICS_PORT and above"
        )
        raise Refused("several_processes", "", because, 409)
    body, media_type = await shown.page.write(request.headers.get("accept", ""))
    media_type = media_type.replace("; charset=utf-8", "")  # the framework adds it
    return Response(body, media_type=media_type, headers={"Cache-Control": "no-store"})
