"""Tells somebody that this process cannot reach the database, when no alert can say so: those live in it.

Where it tells comes from the settings (PGMAIL_ALERT_URL), so it needs nothing but the network. Each process tells for
itself, for each sees another part of that.

What can go wrong: network and database are away together. It goes on trying, every few seconds, until it was told.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime
from ipaddress import ip_network

import msgspec
import structlog

AWAY_SECONDS = 60.0
AGAIN_SECONDS = 15.0

_log = structlog.get_logger()
_ANYWHERE = (ip_network("0.0.0.0/0"), ip_network("::/0"))  # it is the operator's own setting


class Away:
    """Hears of each try to reach the database, and tells once that it is away and once that it is back."""

    def __init__(
        self, url: str, *, seconds: float = AWAY_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`url` takes what Slack's incoming webhooks take, and more beside it; '' tells nobody."""
        self._url, self._seconds, self._clock = url, seconds, clock
        self._since: float | None = None
        self._told = False
        self._again_at = 0.0
        self._telling: asyncio.Task[None] | None = None

    def missed(self) -> None:
        """It could not be reached just now."""
        now = self._clock()
        if self._since is None:
            self._since = now
        if self._told or now - self._since < self._seconds:
            return
        self._tell("firing", f"cannot reach the database for {now - self._since:.0f} seconds")

    def reached(self) -> None:
        """It answered just now."""
        if self._told:
            self._tell("resolved", "reaches the database again")
        else:
            self._since = None

    async def close(self) -> None:
        """Stop telling. Twice is fine."""
        if self._telling is not None:
            self._telling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._telling

    def _tell(self, event: str, said: str) -> None:
        if not self._url or self._clock() < self._again_at or (self._telling and not self._telling.done()):
            return
        self._again_at = self._clock() + AGAIN_SECONDS
        self._telling = asyncio.create_task(self._post(event, said), name="database away")

    async def _post(self, event: str, said: str) -> None:
        words = f"pgmail on {socket.gethostname()} (process {os.getpid()}) {said}."
        body = {
            "type": f"alert.{event}",
            "timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
            "text": words,
            "words": words,
            "alert": {"rule": "database_away", "severity": "critical", "subject": socket.gethostname()},
        }
        from pgmail.transport.guarded_http import GuardedHttp  # noqa: PLC0415 - large, and hardly ever needed

        http = GuardedHttp(_ANYWHERE)
        try:
            answer = await http.post(
                self._url,
                msgspec.json.encode(body),
                {"Content-Type": "application/json", "User-Agent": "pgmail"},
            )
        finally:
            await http.close()
        if not answer.good:
            _log.warning(
                "alert.not_told", rule="database_away", error=answer.error or f"HTTP {answer.status}"
            )
            return
        self._told = event == "firing"
        self._again_at = 0.0
        if not self._told:
            self._since = None
