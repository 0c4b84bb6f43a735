"""An SMTP server that answers like real providers and counts what it accepted: for the demo and for tests.

    async with Sink() as sink:
        ...                               # send to sink.port
        await sink.wait_for(10, seconds=5)
        assert sink.by_message_id["x@example.com"] == 1

Addresses steer it (`sink_rules.BEHAVIOURS`: `bounce.ada@example.org`), or `Sink(rule=...)` at each step.
As a process of its own, `python -m pgmail.sandbox.sink --report FILE`, it survives the kill of those who send
to it, and the report tells how often each Message-ID arrived: each line is written before the mail is
acknowledged. It delivers nothing to anybody. It is not fit to face a network that is not trusted.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Self

import msgspec

from pgmail.errors import SandboxError
from pgmail.sandbox.sink_rules import Answer, Asked, Rule, behave
from pgmail.sandbox.sink_server import SinkConnection
from pgmail.transport.arrivals import Arrivals

RECORDS = 1_000_000
"""`Sink.accepted` holds at most this many; the counts go on."""


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """One mail for one recipient. `at` is Unix time in seconds; `source` is None when it was not kept."""

    message_id: str
    sender: str
    recipient: str
    at: float
    source: bytes | None = None


class Sink:
    """The server. `async with` starts and stops it; stopping twice is fine."""

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        rule: Rule | None = None,
        user: str | None = None,
        password: str | None = None,
        tls: ssl.SSLContext | None = None,
        implicit_tls: bool = False,
        keep_mails: int = 1000,
        keep_bytes: int = 64 * 1024 * 1024,
        folder: Path | None = None,
        report: Path | None = None,
        tarpit_seconds: float = 5.0,
        max_bytes: int = 35_882_577,
        without: frozenset[str] = frozenset(),
    ) -> None:
        """Say how to behave.

        `port` 0 takes a free one. `rule` is asked first at each step. `user` and `password` require AUTH.
        `tls`: a server's context; offers STARTTLS, or with `implicit_tls` speaks TLS from the first octet.
        `keep_mails`, `keep_bytes`: so much of the sources is held in memory, the first ones. `folder`: each
        mail is also written there, `report`: one JSON line each. `without`: names of extensions not offered.
        """
        self.host = host
        self.port = port
        self.hostname = "mx.sink.example"
        self.user = user
        self.password = password
        self.tls = tls
        self.max_bytes = max_bytes
        self.without = without
        self.accepted: list[Stored] = []
        self.by_message_id: Counter[str] = Counter()
        self.by_recipient: Counter[tuple[str, str]] = Counter()  # (Message-ID, recipient)
        self.connected = 0  # connections ever made
        self.connections: set[SinkConnection] = set()
        self._implicit_tls = implicit_tls
        self._rule = rule
        self._keep_mails = keep_mails
        self._keep_bytes = keep_bytes
        self._folder = folder
        self._report_path = report
        self._report: int | None = None
        self._tarpit_seconds = tarpit_seconds
        self._tries: Counter[tuple[str, str, str]] = Counter()
        self._arrivals = Arrivals()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._empty = asyncio.Event()  # no connection is open
        self._empty.set()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen; afterwards `port` is the real one. Raises SandboxError."""
        try:
            if self._folder is not None:
                self._folder.mkdir(parents=True, exist_ok=True)
            if self._report_path is not None:
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
                self._report = os.open(self._report_path, flags, 0o644)
            self._server = await asyncio.get_running_loop().create_server(
                self._connection,
                self.host,
                self.port,
                ssl=self.tls if self._implicit_tls else None,
                backlog=1024,
            )
        except OSError as error:
            await self.stop()
            raise SandboxError(f"the sink cannot start on {self.host}:{self.port}: {error}") from error
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close all connections at once and stop to listen. What was counted can still be read."""
        if self._server is not None:
            self._server.close()
            for connection in list(self.connections):
                connection.abort()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._empty.wait()
            await self._server.wait_closed()
            self._server = None
        if self._report is not None:
            os.close(self._report)
            self._report = None

    async def drop_connections(self) -> None:
        """Close all connections at once, but go on listening: as after a restart."""
        for connection in list(self.connections):
            connection.abort()
        await self._empty.wait()

    @property
    def total(self) -> int:
        """How many mails were accepted."""
        return self._arrivals.total

    @property
    def url(self) -> str:
        """The sink as a relay's URL, without user, password and TLS."""
        return f"smtp://{self.host}:{self.port}"

    async def wait_for(self, total: int, seconds: float = 10.0) -> None:
        """Wait until `total` mails were accepted since the start. Raises TimeoutError."""
        await self._arrivals.wait_for(total, seconds)

    # --- what a connection uses ---

    def opened(self, connection: SinkConnection) -> None:
        """Note a connection, so that it can be closed."""
        self.connections.add(connection)
        self._empty.clear()

    def closed(self, connection: SinkConnection) -> None:
        """Note that a connection is no more."""
        self.connections.discard(connection)
        if not self.connections:
            self._empty.set()

    def answer(self, asked: Asked) -> Answer | None:
        """Ask the rule, then the table."""
        if self._rule is not None:
            answer = self._rule(asked)
            if answer is not None:
                return answer
        return behave(asked, self._tarpit_seconds)

    def count_try(self, sender: str, recipient: str, message_id: str) -> int:
        """Count how often a mail came to its end of data, this time included."""
        key = (sender, recipient, message_id)
        self._tries[key] += 1
        return self._tries[key]

    def store(self, message_id: str, sender: str, recipient: str, source: bytes, *, replied: bool) -> None:
        """Count a mail as accepted. `replied`: the client will be told so."""
        self._arrivals.count()
        self.by_message_id[message_id] += 1
        self.by_recipient[message_id, recipient] += 1
        at = time.time()
        kept: bytes | None = None
        if self._keep_mails > 0 and len(source) <= self._keep_bytes:
            self._keep_mails -= 1
            self._keep_bytes -= len(source)
            kept = source
        if len(self.accepted) < RECORDS:
            self.accepted.append(
                Stored(message_id=message_id, sender=sender, recipient=recipient, at=at, source=kept)
            )
        if self._folder is not None:
            self._write(self._folder, sender, recipient, source)
        if self._report is not None:
            line = {
                "message_id": message_id,
                "sender": sender,
                "recipient": recipient,
                "at": at,
                "bytes": len(source),
                "replied": replied,
            }
            # One write to a file opened with O_APPEND: lines stay whole, and are the kernel's even
            # when this process is killed right after.
            os.write(self._report, msgspec.json.encode(line) + b"\n")

    def tls_context(self) -> ssl.SSLContext:
        """Return the context for STARTTLS."""
        if self.tls is None:
            raise SandboxError("the sink has no certificate")
        return self.tls

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run work for a connection, ended with the sink."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _connection(self) -> SinkConnection:
        self.connected += 1
        return SinkConnection(self, self.connected)

    def _write(self, folder: Path, sender: str, recipient: str, source: bytes) -> None:
        # "x": a folder is only added to, also by the sink started next.
        path = folder / f"{time.time_ns()}-{self.total:08d}.eml"
        with path.open("xb") as file:
            file.write(f"Return-Path: <{sender}>\r\nDelivered-To: {recipient}\r\n".encode())
            file.write(source)


if __name__ == "__main__":
    from pgmail.sandbox.sink_process import main

    raise SystemExit(main())
