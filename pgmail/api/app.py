"""The HTTP API as one application: routes, keys, errors. `server` runs it.

What can go wrong: a route that forgets to ask for a key. So all routes stand under one guard, and those that
need none are listed apart.
"""

from __future__ import annotations

from litestar import Litestar, Router
from litestar.datastructures import State
from litestar.exceptions import HTTPException

from pgmail.api import (
    assets,
    dead_letters,
    emails,
    health,
    openapi,
    problems,
    queue,
    streams,
    suppressions,
    templates,
)
from pgmail.api.keyring import Keyring, guard
from pgmail.clock import Clock
from pgmail.config import Settings
from pgmail.store.database import Database

GUARDED = (
    *(emails.send_email, emails.send_batch, emails.list_emails, emails.get_email),
    *(emails.update_email, emails.cancel_email, emails.list_events),
    *(templates.save_template, templates.publish_template, templates.list_templates, templates.get_template),
    *(assets.save_asset, assets.list_assets, assets.get_asset),
    *(streams.list_streams, streams.get_stream, streams.save_stream),
    *(suppressions.add_suppression, suppressions.list_suppressions, suppressions.remove_suppression),
    *(dead_letters.list_dead_letters, dead_letters.retry_dead_letters, dead_letters.discard_dead_letters),
    queue.show_queue,
)
OPEN = (health.live, health.ready)


def create_app(settings: Settings, database: Database, *, clock: Clock | None = None) -> Litestar:
    """Return the application. `database` is a pool of the API's role, opened and closed by the caller.

    `clock` paces how long a key's check is believed.
    """
    guarded = Router(
        path="/",
        guards=[guard],
        route_handlers=list(GUARDED),
        security=[{"key": []}],
    )
    return Litestar(
        [guarded, *OPEN],
        state=State({"database": database, "keyring": Keyring(database, clock)}),
        exception_handlers={Exception: problems.answer, HTTPException: problems.answer},
        request_max_body_size=settings.max_body_bytes,
        openapi_config=openapi.config(),
        logging_config=None,
        debug=False,
        pdb_on_exception=False,
    )
