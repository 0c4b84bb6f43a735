"""Webhooks of one process, put together from its settings.

What calls the web is loaded when the first call is made: most installations have no webhooks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pgmail.config import Settings
from pgmail.domain.targets import networks_of
from pgmail.hooks.deliverer import Client, Deliverer
from pgmail.sealing import keks
from pgmail.store.database import Database

if TYPE_CHECKING:
    from pgmail.service import Service


def deliverers(
    settings: Settings, database: Database, pressed: Callable[[], bool] = lambda: False
) -> list[Service]:
    """Return what tells endpoints of events; nothing without keys, since no endpoint can be made or signed for.

    `pressed` tells whether the process has as much mail in hand as it takes.
    """
    keys = keks.read(settings)
    if not keys or not settings.hook_concurrency:
        return []

    def client() -> Client:
        from pgmail.transport.guarded_http import GuardedHttp  # noqa: PLC0415

        return GuardedHttp(networks_of(settings.hook_networks), name_servers=settings.name_servers)

    made = Deliverer(
        database,
        keys,
        client,
        concurrency=settings.hook_concurrency,
        rate=settings.hook_rate,
        pressed=pressed,
    )
    return [made]
