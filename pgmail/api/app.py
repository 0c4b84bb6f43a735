"""The HTTP API as one application: routes, keys, errors. `server` runs it.

What can go wrong: a route that forgets to ask for a key. So all routes stand under one guard, and those that
need none are listed apart. `POST /emails` is the exception that is answered before the framework sees it; it
asks for a key itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import structlog
from litestar import Litestar, Router
from litestar.datastructures import State
from litestar.exceptions import HTTPException

from pgmail.access.keyring import Keyring
from pgmail.access.mount import MakeMount, Rooms
from pgmail.access.origin import Origins, networks
from pgmail.api import (
    alerts,
    assets,
    audit,
    dead_letters,
    domains,
    doubts,
    emails,
    events,
    events_ws,
    health,
    keys,
    lanes,
    limits,
    metrics,
    openapi,
    people,
    problems,
    queue,
    quotas,
    reports,
    streams,
    suppressions,
    templates,
    webhooks,
)
from pgmail.api.coalesce import Coalescer
from pgmail.api.doorman import Doorman
from pgmail.api.enqueue import Bare, Enqueue
from pgmail.api.guard import guard
from pgmail.api.meter import Meter
from pgmail.api.traced import traced, traces
from pgmail.clock import Clock
from pgmail.config import Settings
from pgmail.domain.targets import networks_of
from pgmail.feed.hub import Hub
from pgmail.hooks.endpoints import Endpoints
from pgmail.metrics.page import Page
from pgmail.sealing.keks import Keks
from pgmail.seals import Sealer
from pgmail.store.database import Database
from pgmail.store.history import Witness
from pgmail.tracing import Tracing

log = structlog.get_logger()

GUARDED = (
    *(emails.send_email, emails.send_batch, emails.list_emails, emails.get_email),
    *(emails.update_email, emails.cancel_email, emails.hold_email, emails.release_email, emails.list_events),
    *(events.list_happened, events.stream_events),
    *(templates.save_template, templates.publish_template, templates.list_templates, templates.get_template),
    *(assets.save_asset, assets.list_assets, assets.get_asset),
    *(streams.list_streams, streams.get_stream, streams.save_stream),
    *(suppressions.add_suppression, suppressions.list_suppressions, suppressions.remove_suppression),
    suppressions.export_suppressions,
    *(dead_letters.list_dead_letters, dead_letters.retry_dead_letters, dead_letters.discard_dead_letters),
    *(doubts.list_in_doubt, doubts.resolve_in_doubt),
    *(lanes.list_lanes, lanes.pause_lanes, lanes.resume_lanes),
    *(limits.list_limits, queue.show_queue, people.erase_person),
    *(
        domains.add_domain,
        domains.list_domains,
        domains.get_domain,
        domains.verify_domain,
        domains.remove_domain,
    ),
    audit.list_audit,
    quotas.list_quotas,
    *(webhooks.add_webhook, webhooks.list_webhooks, webhooks.get_webhook, webhooks.change_webhook),
    *(webhooks.remove_webhook, webhooks.rotate_webhook, webhooks.test_webhook, webhooks.replay_webhook),
    webhooks.list_deliveries,
    *(reports.show_report, reports.show_causes),
    *(alerts.list_alerts, alerts.silence_alert, alerts.unsilence_alert),
    *(alerts.list_rules, alerts.set_rule, alerts.remove_rule),
    *(alerts.list_targets, alerts.add_target, alerts.remove_target, alerts.test_target),
    *(keys.create_key, keys.list_keys, keys.rotate_key, keys.revoke_key),
)
OPEN = (health.live, health.ready, metrics.show_metrics)  # the last asks for a key itself
OWN_GUARD = (events_ws.socket_events,)  # a browser can send its key only once it is connected


class Application(Litestar):
    """The framework's application, with a short way for the route that nearly all requests take."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        state = self.state
        if state.tracing is not None and traces(scope):
            await traced(state.tracing, self._answer, scope, receive, send)
        else:
            await self._answer(scope, receive, send)
        if state.witness is not None and scope["method"] != "GET":
            state.witness.acted()

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        meter: Meter = self.state.meter
        if scope["path"] == "/emails" and scope["method"] == "POST":
            await meter.count(self.state.bare(scope, receive, send), scope, "/emails")
        else:
            await meter.watch(super().__call__, scope, receive, send)


def create_app(
    settings: Settings,
    database: Database,
    *,
    sends: Database | None = None,
    clock: Clock | None = None,
    witness: Witness | None = None,
    keks: Keks | None = None,
    mounts: Sequence[MakeMount] = (),
    stopping: asyncio.Event | None = None,
    tracing: Tracing | None = None,
) -> Application:
    """Return the application. `database` is a pool of the API's role, opened and closed by the caller.

    `sends` is a second one, for single emails that are sent together; its connections need no trial before
    use (`check`), and there it would cost. `clock` paces how long a key's check is believed. `witness` hears of
    each answer that may have changed something. `keks` seal mail; without them none is sealed here.
    `mounts` make what else this server serves; `stopping` is set when it is to end.
    `tracing` makes spans of requests that hand mail over, which carries them on.
    """
    keyring = Keyring(database, clock)
    origins = Origins(networks(settings.trusted_proxies))
    coalescer = Coalescer(sends or database, database)
    doorman = Doorman(database, clock)
    meter = Meter()
    pools = (database,) if sends is None or sends is database else (database, sends)
    page = Page("api", [meter, coalescer, *pools])
    sealer = Sealer(database, keks or Keks({}))
    hub = Hub(database, most=settings.api_listeners, clock=clock)
    enqueue = Enqueue(database, coalescer, doorman, sealer)
    rooms = Rooms(settings, database, keyring, origins, sealer, stopping or asyncio.Event())
    guests = [make(rooms) for make in mounts]
    guarded = Router(
        path="/",
        guards=[guard],
        route_handlers=list(GUARDED),
        security=[{"key": []}],
    )

    async def drain() -> None:
        await hub.close()
        if not await coalescer.drain(settings.drain_seconds):
            log.warning("emails handed over were not answered in time", seconds=settings.drain_seconds)
        await coalescer.close()
        await keyring.notes.stop()

    return Application(
        [guarded, *OPEN, *OWN_GUARD, *(handler for guest in guests for handler in guest.handlers)],
        state=State(
            {
                "database": database,
                "keyring": keyring,
                "origins": origins,
                "enqueue": enqueue,
                "doorman": doorman,
                "hub": hub,
                "witness": witness,
                "name_servers": settings.name_servers,
                "sealer": sealer,
                "meter": meter,
                "metrics": metrics.Shown(settings, page),
                "bare": Bare(keyring, origins, enqueue, settings.max_body_bytes, traced=tracing is not None),
                "tracing": tracing,
                "endpoints": Endpoints(keks or Keks({}), networks_of(settings.hook_networks)),
                "keks": keks or Keks({}),
                "hook_networks": settings.hook_networks,
                "pages": [guest.path for guest in guests],
                **{name: item for guest in guests for name, item in guest.state.items()},
            }
        ),
        on_startup=[keyring.notes.start],
        on_shutdown=[drain],
        exception_handlers={Exception: problems.answer, HTTPException: problems.answer},
        request_max_body_size=settings.max_body_bytes,
        openapi_config=openapi.config(),
        logging_config=None,
        debug=False,
        pdb_on_exception=False,
    )
