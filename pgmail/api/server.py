"""The API as a process: one listening socket, uvicorn on it, an end in good order.

On SIGTERM or SIGINT it takes no new connection, finishes the requests under way (`drain_seconds` at most) and
returns. What can go wrong: the port is taken, which is a fault of settings and said in one line; the database
is away, which is none: the process starts, says so at `/health/ready`, and works once it is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
import socket
from collections.abc import Callable, Generator, Sequence
from typing import Any

import structlog
import uvicorn
import uvloop

from pgmail.access.mount import MakeMount
from pgmail.api.app import create_app
from pgmail.api.heads import Protocol
from pgmail.api.health import look
from pgmail.api.tls import server_options
from pgmail.collector import calm_collector
from pgmail.config import Settings
from pgmail.errors import SettingsError
from pgmail.feed.hub import Hub
from pgmail.metrics.listener import Listener
from pgmail.sealing import keks
from pgmail.store.database import Database
from pgmail.store.history import Witness
from pgmail.tracing import start as start_tracing

log = structlog.get_logger()

Ready = Callable[[str, int], None]
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
LAST_MARK_SECONDS = 2.0
UNREAD_MS = 60_000


def serve(settings: Settings, *, ready: Ready | None = None, mounts: Sequence[MakeMount] = ()) -> None:
    """Run the API on an event loop of its own (uvloop) until told to stop. See `run`."""
    calm_collector()
    uvloop.run(run(settings, ready=ready, mounts=mounts))


async def run(
    settings: Settings,
    *,
    ready: Ready | None = None,
    stop: asyncio.Event | None = None,
    mounts: Sequence[MakeMount] = (),
) -> None:
    """Serve until SIGTERM, SIGINT or `stop`, then finish what is under way.

    `ready` is called with host and port once requests are answered. `mounts` make what else is served here. Raises
    SettingsError when the address cannot be listened on. Signals are heeded in the main thread only.
    """
    stop = stop or asyncio.Event()
    listener = listen(settings)
    host, port = listener.getsockname()[:2]
    try:
        tls = server_options(settings, host)
    except SettingsError:
        listener.close()
        raise
    sealing = keks.read(settings)
    witness = Witness("api", settings.state_dir)
    database, sends = pools(settings, witness)
    witness.watch(database)
    tracing = start_tracing(settings, "api")
    app = create_app(
        settings,
        database,
        sends=sends,
        witness=witness,
        keks=sealing,
        tracing=tracing,
        mounts=mounts,
        stopping=stop,
    )
    where = f"http{'s' * bool(tls)}://{f'[{host}]' if ':' in host else host}:{port}"
    pages = [where + path for path in app.state.pages]

    async def health() -> str | None:
        return (await look(database))[0]

    try:
        metrics = Listener(settings, app.state.metrics.page, health)
    except SettingsError:
        listener.close()
        raise
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="websockets-sansio",
        ws_max_size=65_536,  # what a listener says is a key
        ws_per_message_deflate=False,  # its memory is a listener's price many times over
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        **tls,
        proxy_headers=False,  # nothing here asks where a client is
        timeout_graceful_shutdown=max(1, math.ceil(settings.drain_seconds)),
    )
    server = _Server(config, lambda: _started(host, port, ready, pages))
    await database.open()
    if sends is not database:
        await sends.open()
    await witness.start()
    await metrics.start()
    try:
        with _told(stop):
            await _serve(server, listener, stop, app.state.hub)
    finally:
        await metrics.stop()
        if tracing is not None:
            await tracing.close()
        await witness.drain(LAST_MARK_SECONDS)
        await witness.stop()
        await sends.close()
        await database.close()
        listener.close()


def pools(settings: Settings, witness: Witness | None = None) -> tuple[Database, Database]:
    """Return the pool that everything shares, and that of single emails sent together; unopened.

    A quarter of the connections is for the latter, which waits for none of the others and tries none before
    use (see `coalesce`); of a single connection there are no parts.
    """
    dsn, size = settings.database("api"), settings.api_pool_size
    greet = witness.greet if witness else None
    part = size // 4 or (size > 1)
    database = Database(dsn, name="pgmail-api", low=1, high=size - part, check=True, greet=greet)
    if not part:
        return database, database
    return database, Database(dsn, name="pgmail-api-send", low=1, high=part, greet=greet)


def listen(settings: Settings) -> socket.socket:
    """Return a listening socket. Several processes of one host share a port (SO_REUSEPORT)."""
    host, port = settings.api_host.strip("[]"), settings.api_port
    sock: socket.socket | None = None
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, proto)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if settings.api_processes > 1 and hasattr(socket, "SO_REUSEPORT"):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # Of the connections too: one whose client takes nothing in for so long is broken, and its memory free.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_MS)
        sock.bind(address)
        sock.listen(2048)
        sock.setblocking(False)
    except OSError as error:
        if sock is not None:
            sock.close()
        reason = error.strerror or error
        raise SettingsError(
            [f"PGMAIL_API_HOST and PGMAIL_API_PORT: cannot listen on {host}:{port}: {reason}"]
        ) from error
    return sock


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers, which would end the process by the signal again."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._started = started

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._started()


def _started(host: str, port: int, ready: Ready | None, pages: Sequence[str]) -> None:
    log.info("listening", host=host, port=port, **({"pages": " ".join(pages)} if pages else {}))
    if ready is not None:
        ready(host, port)


async def _serve(server: _Server, listener: socket.socket, stop: asyncio.Event, hub: Hub) -> None:
    """Run the server until it ends or is told to. Streams never end by themselves, and are ended first."""
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    told = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({serving, told}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        told.cancel()
        await hub.close()
        server.should_exit = True
        await serving


@contextlib.contextmanager
def _told(stop: asyncio.Event) -> Generator[None, None, None]:
    """Set `stop` on a signal, while this lasts; outside the main thread there are none."""
    loop: Any = asyncio.get_running_loop()
    heard = []
    for number in _SIGNALS:
        with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):
            loop.add_signal_handler(number, stop.set)
            heard.append(number)
    try:
        yield
    finally:
        for number in heard:
            loop.remove_signal_handler(number)
