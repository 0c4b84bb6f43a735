"""The HTTP application for tests, its routes looked through once for each process.

That is most of what making an application costs, up to a second of two hundred routes, and the same for each test. So
each gets a copy: routes and handlers are shared, all that an application remembers is its own.

What can go wrong: a test that changes the routes changes them for others. It takes `pgmail.api.app.create_app` itself.
"""

import copy
from typing import Any
from unittest import mock

from pgmail.api import app as real

_Application = real.Application
_MADE: dict[tuple[Any, ...], real.Application] = {}


def create_app(*given: Any, **named: Any) -> real.Application:
    """The same as `pgmail.api.app.create_app`, but that nothing is started or drained by the ASGI lifespan."""
    with mock.patch.object(real, "Application", _copied):
        return real.create_app(*given, **named)


def _copied(handlers: Any, *, state: Any, on_startup: Any, on_shutdown: Any, **rest: Any) -> real.Application:
    del on_startup, on_shutdown  # of one application, and httpx starts none
    # What is shared may depend on this alone.
    kind = (tuple(state["pages"]), rest["request_max_body_size"])
    if kind not in _MADE:
        _MADE[kind] = _Application(handlers, **rest)
    made = copy.copy(_MADE[kind])
    made.state = state
    return made
