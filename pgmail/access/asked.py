"""What the handlers of the API and of the dashboard read of a request, and which scopes stand before what both show.

What can go wrong: a handler that no guard stands before. Its requests say of nobody whose they are, and reading that
fails.
"""

from __future__ import annotations

from typing import Any, Protocol

from pgmail.domain.keys import Scope
from pgmail.store.database import Database
from pgmail.store.keys import Caller

# Scopes of routes; any one of them will do.
SEE: tuple[Scope, ...] = ("read", "manage")  # what is managed is seen by who manages it
CHANGE: tuple[Scope, ...] = ("send", "manage")  # who may only send changes what its key sent


class Asked(Protocol):
    """A request that a guard let pass, as far as it is read here."""

    @property
    def auth(self) -> Any:
        """Whose it is."""

    @property
    def app(self) -> Any:
        """The application; its state holds what handlers share."""


def caller_of(request: Asked) -> Caller:
    """Return whose request it is; the guard put it there."""
    caller: Caller = request.auth
    return caller


def database_of(request: Asked) -> Database:
    """Return the app's pool."""
    database: Database = request.app.state.database
    return database
