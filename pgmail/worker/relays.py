"""Relays as this worker finds them: one transport and one circuit each, and what the rest of the fleet found.

A relay that is away delays its mail: nothing is claimed for it until the next probe, no attempt is spent. The
state is a row that `psql` shows (`pgmail.relay`), so the fleet learns it within a second. One that refuses our
login is paused: trying on would only lock the account. It is probed every few minutes, for the password may
have been mended, and `pgmail resume --relay` ends the pause at once.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping

import structlog

from pgmail.domain.reply import Result
from pgmail.errors import DatabaseAway
from pgmail.shaping.circuit import Circuit
from pgmail.shaping.verdict import Verdict, decide
from pgmail.store import work
from pgmail.store.database import Database
from pgmail.transport.base import Transport, ready

_log = structlog.get_logger()

PAUSE_SECONDS = 300.0  # between two tries of a login that was refused


class Relays:
    """The transports of this process, by relay name, and whether each may be used now."""

    def __init__(self, database: Database, transports: Mapping[str, Transport]) -> None:
        self._database = database
        self._transports = dict(transports)
        self._circuits = {name: Circuit(time.monotonic, random.random) for name in transports}
        self._blocked: dict[str, tuple[float, str]] = {}  # until when (monotonic), and the state
        self._told: dict[str, str] = {}
        self._probing: set[str] = set()

    def get(self, name: str) -> Transport | None:
        """The transport of a relay, or None when this process has none by that name."""
        return self._transports.get(name)

    def blocked(self, name: str) -> bool:
        """Tell whether nothing should be claimed for this relay now."""
        circuit = self._circuits.get(name)
        if circuit is None or circuit.state != "closed":
            return True
        return name in self._blocked

    def wait_seconds(self) -> float | None:
        """Seconds until some blocked relay may be probed; None when none is blocked."""
        now = time.monotonic()
        waits = [until - now for until, _ in self._blocked.values()]
        waits += [c.wait_seconds() for c in self._circuits.values() if c.state != "closed"]
        return max(0.0, min(waits)) if waits else None

    async def learn(self) -> None:
        """Read what the fleet and the operators say of each relay."""
        rows, now = await work.relays(self._database), time.monotonic()
        blocked: dict[str, tuple[float, str]] = {}
        for row in rows:
            self._told[row.name] = row.state
            if row.state == "paused" and row.seconds is None:
                blocked[row.name] = math.inf, row.state
            elif row.state != "up" and row.name in self._circuits:
                blocked[row.name] = now + (row.seconds or 0.0), row.state
        self._blocked = blocked

    async def record(self, name: str, verdict: Verdict) -> None:
        """Learn from one mail, and tell the fleet what changed."""
        circuit = self._circuits[name]
        before = circuit.state
        circuit.record(verdict)
        if verdict.kind == "pause_relay":
            await self._tell(name, "paused", _words(verdict), PAUSE_SECONDS)
        elif circuit.state == "open" and before != "open":
            await self._tell(name, "away", _words(verdict), circuit.wait_seconds())
        elif (
            circuit.state == "closed"
            and self._told.get(name, "up") != "up"
            and verdict.code is not None
            and not self._stopped(name)
        ):
            await self._tell(name, "up", None, None)

    def _stopped(self, name: str) -> bool:
        """Tell whether an operator paused it for good: no mail on its way ends that."""
        return self._blocked.get(name, (0.0, ""))[0] == math.inf

    async def probe(self) -> bool:
        """Try each blocked relay whose wait is over, without a mail. True if one came back."""
        back = False
        for name, circuit in self._circuits.items():
            until, _ = self._blocked.get(name, (0.0, ""))
            due = circuit.state != "closed" or name in self._blocked
            if not due or until > time.monotonic() or name in self._probing or not _may(circuit):
                continue
            self._probing.add(name)
            try:
                result = await self._transports[name].probe()
                back = await self._probed(name, circuit, result) or back
            finally:
                self._probing.discard(name)
        return back

    async def _probed(self, name: str, circuit: Circuit, result: Result) -> bool:
        if ready(result):
            circuit.succeeded()
            self._blocked.pop(name, None)
            await self._tell(name, "up", None, None)
            return True
        verdict = decide(result)
        circuit.failed(verdict.reason)
        paused = verdict.kind == "pause_relay"
        seconds = PAUSE_SECONDS if paused else circuit.wait_seconds()
        await self._tell(name, "paused" if paused else "away", _words(verdict), seconds)
        return False

    async def _tell(self, name: str, state: str, reason: str | None, seconds: float | None) -> None:
        if state != "up":
            self._blocked[name] = time.monotonic() + (seconds or 0.0), state
        if self._told.get(name) != state:
            log = _log.info if state == "up" else _log.warning
            log("relay." + state, relay=name, reason=reason)
        self._told[name] = state
        try:
            await work.relay_state(self._database, name, state, reason, seconds)
        except DatabaseAway:
            self._told.pop(name, None)  # told again with the next change

    async def close(self) -> None:
        """Let go of all connections."""
        for transport in self._transports.values():
            await transport.close()


def _may(circuit: Circuit) -> bool:
    """A closed circuit (another worker's finding) and one whose wait is over may be probed."""
    return circuit.state == "closed" or circuit.allow()


def _words(verdict: Verdict) -> str:
    said = " ".join(str(x) for x in (verdict.code, verdict.enhanced, verdict.reply) if x) or verdict.error
    return f"{verdict.reason}: {said}" if said else verdict.reason
