"""Notices that the database lost work which it had acknowledged: restored from a backup, or a standby that lagged.

A `Witness` makes marks, small commits that count up, and keeps the last number in memory and in a file of this host
(`statefile`). A database that has fewer of its marks than it remembers has lost them, and with them whatever was
committed later than its own: it records a fence there, and from then on no worker of the fleet claims anything until an
operator has decided (`pgmail resume --after-restore`). The comparison is made with every new connection, before anyone
uses it, since another server may be at its other end; and once more with each mark.

What can go wrong:
- Nobody made a mark between the work that was lost and the loss. Marks come four times a second while there is work,
  so this is a quarter of a second of it.
- A host without a file, as a new one, trusts the database, unless another process has recorded the fence.
- The database refuses marks (a role without the right): then nothing is noticed, which is logged, and mail goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import structlog
from psycopg import AsyncConnection
from psycopg.types.json import Jsonb

from pgmail import sqlfiles
from pgmail.errors import DatabaseAway, PgmailError
from pgmail.service import Loop
from pgmail.store.database import Database, fetch_many, fetch_one
from pgmail.store.faults import first_line, translate
from pgmail.store.statefile import Memory, Place, default_folder

_Q = sqlfiles.queries("history")
_log = structlog.get_logger()

IDLE_SECONDS = 5.0  # between two marks without work
BUSY_SECONDS = 0.25
FENCED_SECONDS = 1.0


class Witness(Loop):
    """Remembers what this process saw committed. `clear` tells whether it may act on what the database says."""

    def __init__(self, program: str, folder: str = "") -> None:
        """`folder` is the setting `state_dir`."""
        super().__init__("witness")
        self.fence: str | None = None  # why nothing may be sent
        self._program, self._given = program, folder
        self._trusted = False
        self._place: Place | None = None
        self._memory: Memory | None = None
        self._root: UUID | None = None
        self._witness = uuid4()
        self._acted = asyncio.Event()
        self._settling = asyncio.Lock()
        self._database: Database | None = None
        self._told: str | None = None

    @property
    def clear(self) -> bool:
        """Whether the database was found whole, as far as this process knows."""
        return self._trusted and self.fence is None

    def watch(self, database: Database) -> None:
        """Say whose connections `run` makes its marks with."""
        self._database = database

    def acted(self) -> None:
        """Say that something was acknowledged: it is worth a mark soon."""
        self._acted.set()

    async def greet(self, connection: AsyncConnection[Any]) -> None:
        """Compare a new connection's database with what is remembered, and make a mark. Raises nothing."""
        try:
            await self._mark(connection)
        except psycopg.Error as error:
            known = translate(error)
            # Of a server that is away nothing is known. One that answers and refuses marks must not stop mail for that.
            self._trusted = known is not None and not isinstance(known, DatabaseAway)
            if known is None or self._trusted:
                self._trusted = True
                self._tell(f"marks are refused: {first_line(error)}", "history.unknown")

    async def run(self) -> None:
        """Make marks until drained."""
        self.ready()
        while not self.draining.is_set():
            self._acted.clear()
            try:
                await self._once()
            except DatabaseAway:
                self._trusted = False
            await self._pause()
        with contextlib.suppress(DatabaseAway, TimeoutError):
            async with asyncio.timeout(1.0):
                await self._once()  # so that what was done last is remembered

    async def stop(self) -> None:
        """Stop, and let the file go."""
        await super().stop()
        if self._place is not None:
            self._place.close()

    async def drain(self, timeout: float) -> bool:  # noqa: ASYNC109 - as in Service
        """Make the last mark, after all others have drained."""
        self.draining.set()
        self._acted.set()
        return await super().drain(timeout)

    async def _once(self) -> None:
        if self._database is not None:
            async with self._database.connection() as connection:
                await self.greet(connection)

    async def _pause(self) -> None:
        """Wait for the next mark's moment: soon when there is work."""
        if self.fence is not None or not self._trusted:
            await self._drained_within(FENCED_SECONDS)
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._acted.wait(), IDLE_SECONDS)
            await self._drained_within(BUSY_SECONDS)

    async def _drained_within(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.draining.wait(), seconds)

    async def _mark(self, connection: AsyncConnection[Any]) -> None:
        if self._root is None:
            await self._settle_in(connection, None)
        facts = self._facts()
        row: Any = await fetch_one(connection, _Q["mark"], facts)
        if row.marks is None:  # another database altogether, not a copy
            await self._settle_in(connection, row.root)
            facts = self._facts()
            row = await fetch_one(connection, _Q["mark"], facts)
        if row.marks is None or facts["witness"] != self._witness:
            return  # it changed once more; the next mark tells
        # Several connections may greet at once, and be answered in any order.
        before = self._memory.marks if self._memory and self._memory.history == row.history else 0
        self._remember(
            Memory(
                root=row.root,
                history=row.history,
                generation=row.generation,
                witness=self._witness,
                marks=max(before, row.marks),
                seen_at=row.at,
                place=row.place or {},
            )
        )
        self._trusted = True
        self._fenced(row.fenced)

    async def _settle_in(self, connection: AsyncConnection[Any], root: UUID | None) -> None:
        """Find this host's file for the database (None: not known yet which), and compare what its others remember."""
        if root is None:
            row: Any = await fetch_one(connection, _Q["root"])
            root = row.root
        async with self._settling:
            if root != self._root:  # else another connection was first
                await self._take_place(connection, root)

    async def _take_place(self, connection: AsyncConnection[Any], root: UUID) -> None:
        if self._place is not None:
            self._place.close()
        self._place, self._memory = None, None
        try:
            place = Place(Path(self._given) if self._given else default_folder(), root)
        except (OSError, RuntimeError) as error:
            self._tell(f"no memory outlives this process: {error}", "history.no_file")
            self._root, self._witness = root, uuid4()
            return
        self._place, self._memory, self._witness = place, place.memory, place.witness
        for other in place.others():
            values = {name: getattr(other, name) for name in _REMEMBERED} | {
                "by": f"a process on {socket.gethostname()}",
                "seen": Jsonb(other.place),
            }
            await fetch_one(connection, _Q["recall"], values)
        # Last: until all were asked, other connections that greet wait. A worker that went ahead of them would register
        # here, and be ended by the fence that they bring.
        self._root = root

    def _facts(self) -> dict[str, object]:
        memory = self._memory
        return {
            "root": self._root,
            "history": memory and memory.history,
            "generation": memory and memory.generation,
            "witness": self._witness,
            "marks": memory.marks if memory else 0,
            "seen_at": memory and memory.seen_at,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "program": self._program,
            "seen": Jsonb(memory.place) if memory else None,
        }

    def _remember(self, memory: Memory) -> None:
        self._memory = memory
        if self._place is not None:
            try:
                self._place.write(memory)
            except OSError as error:
                self._tell(f"what was seen cannot be written down: {error}", "history.no_file")

    def _fenced(self, reason: str | None) -> None:
        if reason is not None and self.fence is None:
            _log.error("sending.stopped", reason=reason, mend="pgmail resume --after-restore")
        elif reason is None and self.fence is not None:
            _log.warning("sending.goes_on", program=self._program)
        self.fence = reason

    def _tell(self, text: str, event: str) -> None:
        if text != self._told:
            self._told = text
            _log.warning(event, problem=text)


_REMEMBERED = ("root", "history", "generation", "witness", "marks", "seen_at")


async def fence(connection: AsyncConnection[Any]) -> Any | None:
    """What stops all sending: `noticed_at noticed_by reason lost_from lost_until seen found`; None for nothing."""
    return await fetch_one(connection, _Q["fence"])


async def stop_all(connection: AsyncConnection[Any], reason: str) -> None:
    """Stop all sending by hand. Raises Refused (`missing_field`)."""
    await connection.execute(_Q["stop"].text.encode(), {"reason": reason})


async def doubts(connection: AsyncConnection[Any], since: datetime | None = None) -> list[Any]:
    """By tenant, how much is in doubt: `tenant_id tenant recipients leased oldest newest`.

    `since` is the moment of the backup, where an operator knows it better than what was noticed.
    """
    return await fetch_many(connection, _Q["doubts"], {"since": since})


async def decide(
    connection: AsyncConnection[Any], decision: str, reason: str, since: datetime | None = None
) -> int:
    """Decide on all that is in doubt (`hold`, `resend` or `assume_sent`), and let mail flow. How many it were.

    Some thousands a transaction; one that is cut off is run again. Raises Refused (`not_fenced`, 404).
    """
    decided = 0
    try:
        for row in await doubts(connection, since):
            after: UUID | None = None
            while True:
                values = {"tenant": row.tenant_id, "decision": decision, "since": since, "after": after}
                step: Any = await fetch_one(connection, _Q["decide"], values)
                if not step.n:
                    break
                decided, after = decided + step.n, step.last
        await fetch_one(connection, _Q["accept"], {"decision": decision, "reason": reason})
    except psycopg.Error as error:
        known: PgmailError | None = translate(error)
        raise known or error from error
    return decided
