"""What the API counts of its requests: by method, route and status, and how long they took.

A route is the template that a path fits, so that ids and addresses in paths make no label; a path that fits none is
`none`. Counting is a few additions a request, after its last octet was handed over.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from pgmail.metrics.counts import Histogram, Names, Sample

MOST_ROUTES = 200
_METHODS = Names(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))

App = Callable[[Any, Any, Any], Awaitable[None]]


class Meter:
    """Counts the requests of one process. A source of figures."""

    def __init__(self) -> None:
        self.under_way = 0
        self._requests: dict[tuple[str, str, int], int] = {}
        self._seconds: dict[str, Histogram] = {}
        self._routes = Names(most=MOST_ROUTES)

    async def count(self, answered: Awaitable[int], scope: Any, route: str) -> None:
        """Wait for who tells the status of the answer that it gave, and count that. `route` is its template."""
        began = time.monotonic()
        status = 500  # of who crashes
        self.under_way += 1
        try:
            status = await answered
        finally:
            self.under_way -= 1
            self._note(scope, route, status, time.monotonic() - began)

    async def watch(self, app: App, scope: Any, receive: Any, send: Any) -> None:
        """Let `app` answer a request, and count it by the route that the framework names."""
        began = time.monotonic()
        status = 500  # of who crashes before an answer begins

        async def noted(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self.under_way += 1
        try:
            await app(scope, receive, noted)
        finally:
            self.under_way -= 1
            self._note(scope, "", status, time.monotonic() - began)

    def samples(self) -> Iterator[Sample]:
        """Tell what was counted."""
        for (method, route, status), n in self._requests.items():
            yield Sample("http_requests", (method, route, str(status)), n)
        for route, seconds in self._seconds.items():
            yield Sample("http_request_seconds", (route,), seconds)
        yield Sample("http_in_progress", (), self.under_way)

    def _note(self, scope: Any, route: str, status: int, seconds: float) -> None:
        label = self._routes.of(route or scope.get("path_template") or "none")
        key = _METHODS.of(scope["method"]), label, status
        self._requests[key] = self._requests.get(key, 0) + 1
        histogram = self._seconds.get(label)
        if histogram is None:
            histogram = self._seconds[label] = Histogram()
        histogram.observe(seconds)
