"""All pages of this room, in the order of the menu: what `dashboard.mount` serves and `dashboard.menu` shows."""

from __future__ import annotations

from typing import Any

from pgmail.dashboard.manage import (
    alert_targets,
    alerts,
    audit,
    dead,
    domains,
    doubts,
    keys,
    preview,
    queue,
    streams,
    suppressions,
    templates,
    webhooks,
    workers,
)

HANDLERS: tuple[Any, ...] = (
    *alerts.HANDLERS,
    *alert_targets.HANDLERS,
    *queue.HANDLERS,
    *dead.HANDLERS,
    *doubts.HANDLERS,
    *templates.HANDLERS,
    *preview.HANDLERS,
    *suppressions.HANDLERS,
    *streams.HANDLERS,
    *domains.HANDLERS,
    *webhooks.HANDLERS,
    *keys.HANDLERS,
    *workers.HANDLERS,
    *audit.HANDLERS,
)
