"""Hears NOTIFY: a hint that some mail came while this process slept. Polling is the truth.

The listener has a connection of its own and tests itself with a notification to its own channel. Behind a
transaction-mode pooler it hears nothing; then it says so once and polling carries on alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable
from typing import Any

import structlog
from psycopg import AsyncConnection, Error

from pgmail import sqlfiles
from pgmail.service import Loop
from pgmail.store.database import keepalive, unless_silent
from pgmail.store.faults import first_line

_Q = sqlfiles.queries("presence")
_log = structlog.get_logger()

TEST_SECONDS = 2.0  # to hear oneself
RETEST_SECONDS = 30.0
LONGEST_PAUSE = 10.0
ANSWER_SECONDS = 10.0  # after which a connection counts as silent


class Listener(Loop):
    """Calls `wake` for every notification. `hearing` tells whether it hears at all."""

    def __init__(self, dsn: str, wake: Callable[[], None]) -> None:
        super().__init__("listener")
        self.hearing = False
        self._dsn = dsn
        self._facts: dict[str, Any] = dict(keepalive(dsn))
        self._wake = wake
        self._token = f"test {secrets.token_hex(8)}"
        self._told = False  # that it hears nothing

    async def run(self) -> None:
        """Listen until drained; reconnects by itself, with a growing pause."""
        self.ready()
        pause = 0.2
        while not self.draining.is_set():
            try:
                async with await AsyncConnection.connect(
                    self._dsn, autocommit=True, application_name="pgmail listener", connect_timeout=5,
                    prepare_threshold=None, **self._facts,
                ) as connection:  # fmt: skip
                    with unless_silent(connection, ANSWER_SECONDS):
                        await connection.execute(_Q["listen"].text.encode())
                    self._wake()  # whatever was committed before this moment was not announced to us
                    if await self._hear(connection):
                        pause = 0.2
            except (Error, OSError) as error:
                _log.info("listener.lost", error=first_line(error), retry_seconds=pause)
            self.hearing = False
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.draining.wait(), pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    async def drain(self, timeout: float) -> bool:  # noqa: ASYNC109 - as in Service
        """Nothing to finish."""
        self.draining.set()
        return timeout >= 0

    async def _hear(self, connection: AsyncConnection[Any]) -> bool:
        """Pass notifications on while the test of itself succeeds. True if it ever did."""
        ever = False
        while not self.draining.is_set():
            with unless_silent(connection, ANSWER_SECONDS):
                await connection.execute(_Q["echo"].text.encode(), {"payload": self._token})
            self.hearing = await self._until(connection, self._token)
            if not self.hearing:
                if not self._told and not self.draining.is_set():
                    _log.warning("listener.deaf", reason="a pooler in between, or a server that is stuck")
                    self._told = True
                return ever
            if not ever:
                _log.info("listener.hears")
            ever, self._told = True, False
            await self._until(connection, None)
        return ever

    async def _until(self, connection: AsyncConnection[Any], token: str | None) -> bool:
        """Pass notifications on until `token` comes (True), or time is over (False)."""
        seconds = RETEST_SECONDS if token is None else TEST_SECONDS
        async for note in connection.notifies(timeout=seconds):
            if note.payload == token:
                return True
            if not note.payload.startswith("test "):
                self._wake()
            if self.draining.is_set():
                return False
        return False
