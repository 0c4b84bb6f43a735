"""What runs beside the leader while it leads: work that may take its time, and must not keep a rescue waiting.

A chore is an object with a name and a `step`. Each has a task of its own that begins when this process takes the
lead and is cancelled when it loses it; for a moment two processes may run the same chore, so a step must be right
then, too (its statements lock what they move). A step that fails is logged and comes again after `RETRY_SECONDS`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

import structlog

from pgmail.errors import DatabaseAway, PgmailError

_log = structlog.get_logger()

RETRY_SECONDS = 5.0
AGAIN_SECONDS = 0.5


class Chore(Protocol):
    """Something that one process of the fleet does."""

    name: str

    async def step(self) -> float:
        """Do a short piece of work; the seconds until the next one is due (0: at once). Raises what went wrong."""
        ...


class Chores:
    """Runs chores while this process leads."""

    def __init__(self, chores: Sequence[Chore]) -> None:
        self._chores = tuple(chores)
        self._tasks: list[asyncio.Task[None]] = []

    def lead(self) -> None:
        """Begin, or go on."""
        if not self._tasks:
            self._tasks = [asyncio.create_task(_run(chore), name=chore.name) for chore in self._chores]

    async def rest(self) -> None:
        """Stop, and return when all stand still."""
        alive, self._tasks = set(self._tasks), []
        while alive:
            for task in alive:
                task.cancel()
            # Once more to who took the first for the end of something else, as code around timeouts may.
            _, alive = await asyncio.wait(alive, timeout=AGAIN_SECONDS)


async def _run(chore: Chore) -> None:
    """One chore for as long as it is wanted; nothing but its cancellation ends it."""
    while True:
        try:
            seconds = await chore.step()
        except DatabaseAway:
            seconds = RETRY_SECONDS
        except PgmailError as error:
            _log.warning("chore.failed", chore=chore.name, error=str(error))
            seconds = RETRY_SECONDS
        except Exception:  # noqa: BLE001 - one broken chore is told, and tried again; the others go on
            _log.exception("chore.crashed", chore=chore.name)
            seconds = RETRY_SECONDS
        await asyncio.sleep(seconds)
