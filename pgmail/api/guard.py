"""What stands before every route: a key that lives, and its scope.

Each route says in its `scope` which scopes let a key ask for it; one that says nothing lets nobody in. A key for tests
is let in where something is only shown, and else where a route says `test=True`: what it changes is within `reach`.

What can go wrong: a route outside of the guarded router. `app` lists those that need no key.
"""

from __future__ import annotations

from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler

from pgmail.access.keyring import need_scope
from pgmail.access.reach import need_live


async def guard(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """Let a request with a valid key and the right scope pass, and say in `request.auth` whose it is.

    A Litestar guard; it leaves the client's address in `request.state.address`.
    """
    state = connection.app.state
    address = connection.state.address = state.origins.of(connection.scope)
    caller = await state.keyring.caller(connection.headers.get("authorization"), address)
    if connection.scope.get("method") != "OPTIONS":  # which the framework answers: it names a route's methods
        need_scope(caller, handler.opt.get("scope"))
        if not handler.opt.get("test", connection.scope.get("method") == "GET"):
            need_live(caller)
    connection.scope["auth"] = caller._replace(source=address or "")
