"""Fixtures: SMTP servers on loopback, relays to them, certificates, envelopes."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from pgmail.domain.reply import Envelope
from pgmail.sandbox.sink import Sink
from pgmail.transport.relay import SmtpRelay
from pgmail.transport.relay_config import RelayConfig, Timeouts

OpenSink = Callable[..., Awaitable[Sink]]
OpenRelay = Callable[..., SmtpRelay]
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OpenScript = Callable[[Handler], Awaitable[int]]


def an_envelope(recipient: str = "ada@example.org", **changes: Any) -> Envelope:
    """An envelope; `id` becomes its Message-ID, `lines` its text."""
    name = changes.pop("id", "one@example.com")
    text = changes.pop("lines", b"Hello\r\n")
    head = f"From: shop@example.com\r\nTo: {recipient}\r\nSubject: Hi\r\nMessage-ID: <{name}>\r\n\r\n"
    return Envelope(
        **{"sender": "shop@example.com", "recipient": recipient, "body": head.encode() + text, **changes}
    )


@pytest.fixture
def envelope() -> Callable[..., Envelope]:
    return an_envelope


@pytest.fixture
async def open_sink() -> AsyncIterator[OpenSink]:
    """Start sinks with any options; all are stopped afterwards."""
    sinks: list[Sink] = []

    async def start(**options: Any) -> Sink:
        sink = Sink(**{"tarpit_seconds": 0.05, **options})
        await sink.start()
        sinks.append(sink)
        return sink

    yield start
    for sink in sinks:
        await sink.stop()


@pytest.fixture
async def sink(open_sink: OpenSink) -> Sink:
    """A sink that offers everything but TLS and AUTH."""
    return await open_sink()


@pytest.fixture
async def open_relay() -> AsyncIterator[OpenRelay]:
    """Make relays: `open_relay(port, "tls=none", login="user:pass@", scheme="smtp")`; closed afterwards."""
    relays: list[SmtpRelay] = []

    def make(
        port: int, options: str = "", *, login: str = "", scheme: str = "smtp", host: str = "127.0.0.1"
    ) -> SmtpRelay:
        relay = SmtpRelay.from_url(f"{scheme}://{login}{host}:{port}?{options}")
        relays.append(relay)
        return relay

    yield make
    for relay in relays:
        await relay.close()


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Time limits of relays, to be set by name (`limits["dot"] = 0.05`) before a connection is opened.

    Only the step that is to run out of time is made short, so that a slow machine meets no other limit.
    """
    changed: dict[str, float] = {}
    monkeypatch.setattr(RelayConfig, "timeouts", property(lambda _config: Timeouts(**changed)))
    return changed


@pytest.fixture
async def open_script() -> AsyncIterator[OpenScript]:
    """Start a server that says what a function makes it say: `port = await open_script(handler)`."""
    servers: list[asyncio.Server] = []
    tasks: set[asyncio.Task[None]] = set()

    async def start(handler: Handler) -> int:
        async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            tasks.add(task)
            try:
                await handler(reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError):
                pass
            finally:
                writer.close()
                tasks.discard(task)

        server = await asyncio.start_server(run, "127.0.0.1", 0)
        servers.append(server)
        return server.sockets[0].getsockname()[1]

    yield start
    for server in servers:
        server.close()
    for task in list(tasks):
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture(scope="session")
def certificate_authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def server_tls(certificate_authority: trustme.CA) -> ssl.SSLContext:
    """A server's context with a certificate for 127.0.0.1 and localhost."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate_authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    return context


@pytest.fixture(scope="session")
def ca_file(certificate_authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The PEM file of the authority that signed the server's certificate."""
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    certificate_authority.cert_pem.write_to_path(path)
    return path
