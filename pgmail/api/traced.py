"""Spans of the requests that hand mail over, where tracing is on (`pgmail.tracing`).

The caller's `traceparent` header is the parent of the request's span; what the email carries on is the span of its
enqueue, below that one. An email that brings a traceparent of its own, in its body, keeps it.

What can go wrong: a header that is no traceparent. Then the request begins a trace of its own (W3C Trace Context,
section 4.3).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from pgmail.tracing import Tracing

App = Callable[[Any, Any, Any], Awaitable[None]]

HEADER = "traceparent"
ROUTES = frozenset({"/emails", "/emails/batch"})


def traces(scope: Any) -> bool:
    """Tell whether a request hands mail over."""
    return scope["path"] in ROUTES and scope["method"] == "POST"


async def traced(tracing: Tracing, app: App, scope: Any, receive: Any, send: Any) -> None:
    """Let `app` answer one request of `ROUTES`, and tell its spans."""
    route = scope["path"]
    given = next((value for name, value in scope["headers"] if name == HEADER.encode()), b"")
    request = tracing.begin(f"POST {route}", given.decode("latin-1").strip() or None, "server")
    enqueue = tracing.begin("enqueue", request.traceparent, "producer")
    others = [(name, value) for name, value in scope["headers"] if name != HEADER.encode()]
    status = 500

    async def noted(message: Any) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
            enqueue.end({}, error=None if status < 400 else str(status))
        await send(message)

    try:
        headers = [*others, (HEADER.encode(), enqueue.traceparent.encode())]
        await app({**scope, "headers": headers}, receive, noted)
    finally:
        facts = {"http.request.method": "POST", "http.route": route, "http.response.status_code": status}
        request.end(facts, error=str(status) if status >= 500 else None)


def carry(value: Any, traceparent: str | None) -> None:
    """Have an email, or each of a batch, carry a trace on, unless it brings one."""
    if traceparent is None:
        return
    for email in value if isinstance(value, list) else (value,):
        if isinstance(email, dict):
            email.setdefault(HEADER, traceparent)
