"""Relays as this worker finds them: one transport and one circuit each, and what the rest of the fleet found.

A relay that is away delays its mail: nothing is claimed for it until the next probe, no attempt is spent. The
state is a row that `psql` shows (`pgmail.relay`), so the fleet learns it within a second. One that refuses our
login is paused: trying on would only lock the account. It is probed every few minutes, for the password may
have been mended, and `pgmail resume --relay` ends the pause at once.

A relay that is new to this process, or came back, is ramped up to: one mail of a class at a time, one more with
each that it answers. Where a stream names several, the next takes over while the one before is away, or they share by
weight.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import structlog

from pgmail.domain.reply import Result
from pgmail.errors import DatabaseAway
from pgmail.log import without_addresses
from pgmail.metrics.counts import Sample
from pgmail.shaping.circuit import Circuit
from pgmail.shaping.verdict import Verdict, decide
from pgmail.store import limits as limit_store
from pgmail.store import work
from pgmail.store.database import Database
from pgmail.store.work import StreamRow
from pgmail.transport.base import Transport, ready
from pgmail.transport.relay import SmtpRelay
from pgmail.transport.sandbox import SandboxTransport
from pgmail.worker.staging import TEST_RELAY

if TYPE_CHECKING:
    from pgmail.worker.job import Job
    from pgmail.worker.limiter import Limiter
    from pgmail.worker.outbox import Gate, Outbox

_log = structlog.get_logger()

PAUSE_SECONDS = 300.0  # between two tries of a login that was refused
# A circuit never waits longer. Were the database's clock set back, its moment could lie a day ahead.
MOST_AWAY_SECONDS = 120.0
RAMP_START, RAMP_DONE = 1, 100  # mails on the wire at once; after so many answers it is no longer bounded


class Relays:
    """The transports of this process, by relay name, and whether each may be used now."""

    def __init__(
        self,
        database: Database,
        transports: Mapping[str, Transport],
        outbox: Outbox,
        sandbox: Transport | None = None,
    ) -> None:
        """`sandbox` takes test email: it has no circuit, no ramp and no row, and never refuses."""
        self._sandbox = SandboxTransport() if sandbox is None else sandbox
        self._database, self._outbox = database, outbox
        self._transports = dict(transports)
        self._ramps: dict[str, Gate] = {}
        self._slots = outbox.slots
        self._most: dict[str, int] = {}  # connections
        self._circuits = {name: Circuit(time.monotonic, random.random) for name in transports}
        self._blocked: dict[str, tuple[float, str]] = {}  # until when (monotonic), and the state
        self._told: dict[str, str] = {}
        self._probing: set[str] = set()
        self._registered = False
        for name in transports:
            self._start_ramp(name)

    def get(self, name: str) -> Transport | None:
        """The transport of a relay, or None when this process has none by that name."""
        return self._sandbox if name == TEST_RELAY else self._transports.get(name)

    def blocked(self, name: str) -> bool:
        """Tell whether nothing should be claimed for this relay now."""
        if name == TEST_RELAY:
            return False
        circuit = self._circuits.get(name)
        if circuit is None or circuit.state != "closed":
            return True
        return name in self._blocked

    def samples(self) -> Iterator[Sample]:
        """Whether mail may go to each relay, and the connections to it."""
        for name, transport in self._transports.items():
            yield Sample("relay_up", (name,), float(not self.blocked(name)))
            if isinstance(transport, SmtpRelay):
                yield Sample("smtp_connections", (name, "open"), transport.open_connections)
                yield Sample("smtp_connections", (name, "idle"), transport.idle_connections)

    def pick(self, stream: StreamRow) -> str | None:
        """The relay that carries a stream's next mail; None while none of its relays can be used."""
        if not stream.relays:
            return None if self.blocked(stream.relay) else stream.relay
        up = [name for name in stream.relays if not self.blocked(name)]
        if len(up) < 2 or not stream.relay_weights:
            return up[0] if up else None
        weights = dict(zip(stream.relays, stream.relay_weights, strict=True))
        return random.choices(up, [weights[name] for name in up])[0]  # noqa: S311 - who goes where is no secret

    def ramp(self, job: Job) -> None:
        """Let a job wait its turn while its relay is ramped up to."""
        gate = self._ramps.get(job.relay)
        if gate is not None:
            gate.claimed += 1
            job.gates += (gate,)

    def obey(self, limiter: Limiter) -> None:
        """Hold no more connections than this worker has permits for, nor than its slots can fill."""
        for name, transport in self._transports.items():
            if not isinstance(transport, SmtpRelay):
                continue
            allowed = limiter.allowed(name)
            most = min(transport.config.max_connections, math.ceil(self._slots / transport.pipeline_depth))
            if allowed is not None:
                most = min(most, allowed)
            if most != self._most.get(name):
                transport.set_max_connections(most)
                self._most[name] = most

    def _start_ramp(self, name: str) -> None:
        gate = self._ramps[name] = self._outbox.gate(("ramp", name), by_class=True)
        gate.limit = RAMP_START

    def _grow(self, name: str) -> None:
        """It answered: one more may be on the wire."""
        gate = self._ramps.get(name)
        if gate is not None and gate.limit is not None:
            gate.limit += 1
            if gate.limit >= RAMP_DONE:
                gate.limit = None
                del self._ramps[name]
            self._outbox.opened(gate)

    def wait_seconds(self) -> float | None:
        """Seconds until some blocked relay may be probed; None when none is blocked."""
        now = time.monotonic()
        waits = [until - now for until, _ in self._blocked.values()]
        waits += [c.wait_seconds() for c in self._circuits.values() if c.state != "closed"]
        return max(0.0, min(waits)) if waits else None

    async def learn(self) -> None:
        """Read what the fleet and the operators say of each relay."""
        if not self._registered:
            await limit_store.register_relays(self._database, list(self._transports))
            self._registered = True
        rows, now = await work.relays(self._database), time.monotonic()
        blocked: dict[str, tuple[float, str]] = {}
        for row in rows:
            self._told[row.name] = row.state
            if row.state == "paused" and row.seconds is None:
                blocked[row.name] = math.inf, row.state
            elif row.state != "up" and row.name in self._circuits:
                seconds = row.seconds or 0.0
                if row.state == "away":
                    seconds = min(seconds, MOST_AWAY_SECONDS)
                blocked[row.name] = now + seconds, row.state
        for name in self._blocked.keys() - blocked.keys():
            if name in self._circuits:
                self._start_ramp(name)  # another worker, or an operator, says that it is back
        self._blocked = blocked

    def eightbit(self, name: str) -> bool:
        """Tell whether this relay took 8bit text (RFC 6152) when it was last connected to."""
        transport = self._transports.get(name)
        if not isinstance(transport, SmtpRelay):
            return False
        offered = transport.capabilities()
        return offered is not None and offered.eightbit

    def well(self, name: str, verdict: Verdict) -> bool:
        """Take an answer in. Tell whether it changes nothing: the relay was known to be there, and is."""
        if name == TEST_RELAY:
            return True
        if self._ramps and verdict.code is not None and verdict.kind not in ("delay", "pause_relay"):
            self._grow(name)
        return (
            verdict.code is not None
            and verdict.kind not in ("delay", "pause_relay")
            and self._circuits[name].state == "closed"
            and self._told.get(name, "up") == "up"
        )

    async def record(self, name: str, verdict: Verdict) -> None:
        """Learn from one mail, and tell the fleet what changed."""
        circuit = self._circuits[name]
        before = circuit.state
        circuit.record(verdict)
        if before != "closed" and circuit.state == "closed":
            self._start_ramp(name)
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
        return any(await asyncio.gather(*map(self.probe_one, self.to_probe())))

    def to_probe(self) -> list[str]:
        """Name the blocked relays whose wait is over and that nobody is trying now."""
        now = time.monotonic()
        return [
            name
            for name, circuit in self._circuits.items()
            if (circuit.state != "closed" or name in self._blocked)
            and name not in self._probing
            and self._blocked.get(name, (0.0, ""))[0] <= now
            and (circuit.state == "closed" or circuit.wait_seconds() <= 0)
        ]

    async def probe_one(self, name: str) -> bool:
        """Try one of them. True if it came back. One that says nothing takes minutes, and may hold up no other."""
        circuit = self._circuits[name]
        if name in self._probing or not _may(circuit):
            return False
        self._probing.add(name)
        try:
            return await self._probed(name, circuit, await self._transports[name].probe())
        finally:
            self._probing.discard(name)

    async def _probed(self, name: str, circuit: Circuit, result: Result) -> bool:
        if ready(result):
            circuit.succeeded()
            self._start_ramp(name)
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
        else:
            self._blocked.pop(name, None)
        if self._told.get(name) != state:
            log = _log.info if state == "up" else _log.warning
            log("relay." + state, relay=name, reason=reason)
        self._told[name] = state
        try:
            await work.relay_state(self._database, name, state, reason, seconds)
        except DatabaseAway:
            self._told.pop(name, None)  # told again with the next change

    def recall(self) -> None:
        """End all mails that relays have whose end of data is not out yet."""
        for transport in self._transports.values():
            if isinstance(transport, SmtpRelay):
                transport.recall()

    async def close(self) -> None:
        """Let go of all connections."""
        for transport in (*self._transports.values(), self._sandbox):
            await transport.close()


def _may(circuit: Circuit) -> bool:
    """A closed circuit (another worker's finding) and one whose wait is over may be probed."""
    return circuit.state == "closed" or circuit.allow()


def _words(verdict: Verdict) -> str:
    said = " ".join(str(x) for x in (verdict.code, verdict.enhanced, verdict.reply) if x) or verdict.error
    # The row outlives the mail, and whoever asks to be erased.
    return f"{verdict.reason}: {without_addresses(said)}" if said else verdict.reason
