"""Who may make endpoints and look at them, through the API and the dashboard alike.

What can go wrong: a key that is limited to streams would be told of all of them through an endpoint of its own. So
endpoints are for keys without such limits, and for live ones; and to make or change one takes a key that may read as
well as manage.
"""

from __future__ import annotations

from pgmail.access.asked import Asked, caller_of
from pgmail.access.keyring import need_scope
from pgmail.access.reach import need_all_streams, need_live
from pgmail.hooks.endpoints import Endpoints
from pgmail.store.keys import Caller


def manager_of(request: Asked) -> Caller:
    """Return the caller, unless its key is limited to tests or streams (Refused, 403)."""
    caller = caller_of(request)
    need_live(caller)
    need_all_streams(caller)
    return caller


def teller_of(request: Asked) -> Caller:
    """Return the caller as `manager_of`, of a key that may read too: an endpoint is told what the feed tells."""
    caller = manager_of(request)
    need_scope(caller, "read")
    return caller


def endpoints_of(request: Asked) -> Endpoints:
    """Return what makes and changes endpoints here."""
    found: Endpoints = request.app.state.endpoints
    return found
