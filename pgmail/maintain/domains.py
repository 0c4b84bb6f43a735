"""Looks again at the DNS records of verified sender domains, one after the other, beside what the leader does.

A look takes seconds where a name server is silent, and rescue must not wait for it: so a round runs as a task
of its own, and holds no transaction while it asks. What a look means is decided by `pgmail.settle_domain`.

What can go wrong: a new leader begins a round while the old one is at it. Both ask the same question and
record the same answer.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

import structlog

from pgmail.errors import DatabaseAway, PgmailError
from pgmail.sqlfiles import queries
from pgmail.store.database import Database
from pgmail.transport import txt

_Q = queries("domains")
_log = structlog.get_logger()


class Domains:
    """The leader's rounds over the domains that are due: `start` begins one, `stop` ends it."""

    def __init__(self, database: Database, name_servers: Sequence[tuple[str, int]] = ()) -> None:
        self._database, self._servers = database, name_servers
        self._round: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin a round, unless one is under way."""
        if self._round is None or self._round.done():
            self._round = asyncio.create_task(self._look(), name="sender domains")

    async def stop(self) -> None:
        """End a round that is under way. Twice is fine."""
        if self._round is not None:
            self._round.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._round

    async def _look(self) -> None:
        try:
            for row in await self._database.many(_Q["due"]):
                try:
                    await self._settle(row, await txt.look(row.domain, self._servers))
                except DatabaseAway:
                    raise
                except Exception as error:  # noqa: BLE001 - whatever it is, the others' domains come next
                    # The next round begins with those not looked at for longest: what one tenant's zone brings about
                    # must move its turn on, or it would end every round before the others' domains.
                    _log.exception("domain.look_crashed", domain=row.domain, tenant=row.tenant_id)
                    said = (
                        f"looking at it failed here ({type(error).__name__}); the log of the leader says more"
                    )
                    await self._settle(row, txt.Look(txt.record_of(row.domain), "malformed", (), said))
        except PgmailError as error:
            _log.warning("leader.task_failed", task="domains", error=str(error))
        except Exception:  # noqa: BLE001 - a task of its own: nobody else would ever hear of it
            _log.exception("leader.task_crashed", task="domains")

    async def _settle(self, row: Any, found: txt.Look) -> None:
        answer = await self._database.one(
            _Q["looked"],
            {
                "tenant": row.tenant_id,
                "id": row.id,
                "outcome": found.outcome,
                "found": list(found.found),
                "said": found.said,
            },
        )
        if answer is not None and answer.state == "failed":
            _log.error("domain.lapsed", domain=row.domain, tenant=row.tenant_id, said=found.said)
