"""What the menu shows, in its order. A page that stands here has a handler for its path."""

from __future__ import annotations

from typing import NamedTuple

from pgmail.dashboard.guard import SEE, may
from pgmail.domain.keys import Scope
from pgmail.store.keys import Caller

ROOT = "/dashboard"


class Entry(NamedTuple):
    """One line of the menu: `icon` is a name of the macro `icon` in parts.html; `scope` as of the page's handler.

    `live`: not for a key for tests; `all_streams`: not for one that is limited to some.
    """

    name: str
    path: str
    icon: str
    scope: tuple[Scope, ...] = SEE
    live: bool = False
    all_streams: bool = False


MENU: tuple[Entry, ...] = (
    Entry("Overview", ROOT, "pulse", live=True),
    Entry("Alerts", f"{ROOT}/alerts", "bell", live=True),
    Entry("Emails", f"{ROOT}/emails", "mail", ("read",)),
    Entry("Queue", f"{ROOT}/queue", "queue"),
    Entry("Dead letters", f"{ROOT}/dead-letters", "dead"),
    Entry("In doubt", f"{ROOT}/in-doubt", "clock"),
    Entry("Templates", f"{ROOT}/templates", "template"),
    Entry("Suppressions", f"{ROOT}/suppressions", "block", live=True),
    Entry("Streams", f"{ROOT}/streams", "stream"),
    Entry("Domains", f"{ROOT}/domains", "domain", ("read",)),
    Entry("Webhooks", f"{ROOT}/webhooks", "hook", ("manage",), live=True, all_streams=True),
    Entry("API keys", f"{ROOT}/keys", "key", ("admin",)),
    Entry("Workers", f"{ROOT}/workers", "worker"),
    Entry("Audit", f"{ROOT}/audit", "audit", ("manage",), live=True, all_streams=True),
)


def menu_of(caller: Caller) -> list[Entry]:
    """Return the pages that a caller may open."""
    return [
        entry
        for entry in MENU
        if may(caller, *entry.scope, test=not entry.live)
        and (caller.streams is None or not entry.all_streams)
    ]
