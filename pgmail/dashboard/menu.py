"""What the menu shows, in its order. A page that stands here has a handler for its path."""

from __future__ import annotations

from typing import NamedTuple

from pgmail.dashboard.guard import SEE
from pgmail.domain.keys import Scope

ROOT = "/dashboard"


class Entry(NamedTuple):
    """One line of the menu: `icon` is a name of the macro `icon` in parts.html; `scope` as of the page's handler."""

    name: str
    path: str
    icon: str
    scope: tuple[Scope, ...] = SEE


MENU: tuple[Entry, ...] = (
    Entry("Overview", ROOT, "pulse"),
    Entry("Emails", f"{ROOT}/emails", "mail", ("read",)),
)
