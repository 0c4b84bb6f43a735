"""A small HTTP listener in each process: `/metrics`, `/health/live`, `/health/ready`. It takes no body and no key.

Each process takes PGMAIL_METRICS_PORT or the next free port above it, so that several processes of a host are all
asked for themselves, and none of them speaks for another. It is this machine's alone unless PGMAIL_METRICS_HOST says
otherwise; then PGMAIL_METRICS_NETWORKS says who may read the figures (health is told to anybody), and plain HTTP takes
the same permission as the API's.

What can go wrong: no port is free. The process says so and does its work without: figures are no reason to send no
mail.
A client that says nothing, or no end, is hung up on after `PATIENCE_SECONDS`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import ssl
from collections.abc import Awaitable, Callable

import structlog

from pgmail.config import Settings
from pgmail.errors import SettingsError
from pgmail.metrics.page import Page

_log = structlog.get_logger()

PORTS = 64  # tried, from the first one up
PATIENCE_SECONDS = 5.0
MOST_AT_ONCE = 16
MOST_HEAD = 16_384  # octets

Health = Callable[[], Awaitable[str | None]]
"""Tells what keeps a process from working, or None."""

_TEXT = "text/plain; charset=utf-8"
_JSON = "application/json"
_REASONS = {200: "OK", 400: "Bad Request", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed"} | {
    500: "Internal Server Error",
    503: "Service Unavailable",
}


class Listener:
    """Serves a page, from `start` until `stop`; while its process drains, too. A `Service`."""

    name = "metrics"

    def __init__(self, settings: Settings, page: Page, health: Health) -> None:
        """Raises SettingsError where the settings would have it tell everybody, or speak plain HTTP abroad."""
        self._page, self._health = page, health
        self._host, self._first = settings.metrics_host.strip("[]"), settings.metrics_port
        self._networks = tuple(ipaddress.ip_network(word) for word in settings.metrics_networks.split())
        self._tls = _tls(settings, self._host) if self._first else None
        self._server: asyncio.Server | None = None
        self._over = asyncio.Event()
        self._places = asyncio.Semaphore(MOST_AT_ONCE)
        self.port = 0
        """Where it listens; 0 while it does not."""

    async def start(self) -> None:
        """Take a port and listen."""
        if not self._first:
            return
        for port in range(self._first, min(self._first + PORTS, 65_536)):
            try:
                self._server = await asyncio.start_server(
                    self._serve, self._host, port, limit=MOST_HEAD, ssl=self._tls
                )
            except OSError:
                continue
            self.port = port
            _log.info("metrics.listens", host=self._host, port=port)
            return
        _log.warning("metrics.no_port", host=self._host, first=self._first, tried=PORTS)

    async def drain(self, timeout: float) -> bool:  # noqa: ASYNC109 - as in Service
        """Go on: how a process drains is worth seeing."""
        return timeout >= 0

    async def stop(self) -> None:
        """Listen no more."""
        self._over.set()
        self.port = 0
        if self._server is not None:
            self._server.close()
            self._server = None

    async def ended(self) -> None:
        """Return when it was stopped."""
        await self._over.wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(PATIENCE_SECONDS), self._places:
                head = await reader.readuntil(b"\r\n\r\n")
                status, media_type, body = await self._answer(head, writer.get_extra_info("peername"))
                writer.write(_head(status, media_type, len(body)))
                if not head.startswith(b"HEAD "):
                    writer.write(body)
                await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError, OSError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, head: bytes, peer: tuple[str, int] | None) -> tuple[int, str, bytes]:
        """Return status, media type and body."""
        first, *rest = head.decode("latin-1").split("\r\n")
        method, _, target = first.partition(" ")
        path = target.partition(" ")[0].partition("?")[0]
        if not path.startswith("/"):
            return 400, _TEXT, b"not an HTTP request\n"
        if path not in ("/metrics", "/health/live", "/health/ready"):
            return 404, _TEXT, b"/metrics, /health/live or /health/ready\n"
        if method not in ("GET", "HEAD"):
            return 405, _TEXT, b"GET or HEAD\n"
        if path == "/health/live":
            return 200, _JSON, b'{"status":"ok"}\n'
        if path == "/health/ready":
            return await self._ready()
        if not self._may_read(peer):
            return 403, _TEXT, b"PGMAIL_METRICS_NETWORKS does not name your address\n"
        accept = next((value for name, value in map(_field, rest) if name == "accept"), "")
        try:
            body, media_type = await self._page.write(accept)
        except Exception:  # noqa: BLE001 - a fault of ours in a figure: told, and never the end of a worker
            _log.exception("metrics.failed")
            return 500, _TEXT, b"see the log\n"
        return 200, media_type, body

    async def _ready(self) -> tuple[int, str, bytes]:
        problem = await self._health()
        if problem is None:
            return 200, _JSON, b'{"status":"ok"}\n'
        said = json.dumps({"status": "unavailable", "problem": problem}, separators=(",", ":"))
        return 503, _JSON, said.encode() + b"\n"

    def _may_read(self, peer: tuple[str, int] | None) -> bool:
        if peer is None:
            return False
        found = ipaddress.ip_address(peer[0].partition("%")[0])
        address = getattr(found, "ipv4_mapped", None) or found
        return may_read(address, self._networks)


def may_read(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
    networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...],
) -> bool:
    """Tell whether figures are shown to this address: this machine's own, or one of the networks."""
    return address.is_loopback or any(
        address in network for network in networks if network.version == address.version
    )


def _field(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip().lower(), value.strip()


def _head(status: int, media_type: str, size: int) -> bytes:
    return (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {media_type}\r\nContent-Length: {size}\r\n"
        "Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    ).encode()


def _tls(settings: Settings, host: str) -> ssl.SSLContext | None:
    """Return what the listener speaks: TLS where it is heard abroad and the API has a certificate, else plain HTTP."""
    try:
        alone = ipaddress.ip_address(host).is_loopback
    except ValueError:
        alone = host == "localhost"
    if alone:
        return None
    abroad = f"PGMAIL_METRICS_HOST: {host} is not this machine alone"
    if not settings.metrics_networks.strip():
        raise SettingsError([f"{abroad}; name in PGMAIL_METRICS_NETWORKS who may read"])
    if settings.api_tls_cert:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(settings.api_tls_cert, settings.api_tls_key or None, password="")
        except (OSError, ValueError) as error:
            raise SettingsError([f"PGMAIL_API_TLS_CERT, for PGMAIL_METRICS_HOST: {error}"]) from None
        return context
    if not settings.api_plain_http:
        raise SettingsError(
            [f"{abroad}; set PGMAIL_API_TLS_CERT, or PGMAIL_API_PLAIN_HTTP=true on a private network"]
        )
    return None
