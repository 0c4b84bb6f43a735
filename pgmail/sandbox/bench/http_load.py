"""Load on an HTTP server from kept-open connections: `wrk` where it is installed, else a client of our own.

Each connection has one request under way and sends the next when it is answered. What can go wrong: answers that
are no success, or connections that break. Both are a SandboxError, for a rate of refusals is no figure.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import httptools
import msgspec
import uvloop

from pgmail.errors import SandboxError
from pgmail.sandbox.bench.meter import percentile

_SCRIPT = """
local file = io.open({body}, "rb")
wrk.method = "POST"
wrk.body = file:read("*a")
file:close()
{headers}
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('{{"answered":%d,"us":%d,"refused":%d,"broken":%d,"p50_us":%d,"p99_us":%d}}\\n',
    summary.requests, summary.duration, e.status, e.connect + e.read + e.write + e.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""


class Request(NamedTuple):
    """What is sent again and again: a POST of a JSON body."""

    url: str
    body: bytes
    headers: Mapping[str, str]


class Load(NamedTuple):
    """What a load came to: successes a second, their latencies, and their number."""

    per_s: float
    p50_ms: float
    p99_ms: float
    answered: int


def client() -> str:
    """The client that `load` uses here."""
    return "wrk" if shutil.which("wrk") else "pgmail's own"


def load(request: Request, connections: int, seconds: float, folder: Path) -> Load:
    """Send a request over and over; `folder` takes the client's files. Raises SandboxError."""
    if shutil.which("wrk"):
        return _wrk(request, connections, seconds, folder)
    return own(request, connections, seconds)


def own(request: Request, connections: int, seconds: float) -> Load:
    """Send with the client of our own, from one thread."""
    return uvloop.run(_own(request, connections, seconds))


def _wrk(request: Request, connections: int, seconds: float, folder: Path) -> Load:
    (folder / "body.json").write_bytes(request.body)
    script = folder / "post.lua"
    lines = [f"wrk.headers[{_lua(name)}] = {_lua(value)}" for name, value in _headers(request).items()]
    text = _SCRIPT.format(body=_lua(str(folder / "body.json")), headers="\n".join(lines))
    script.write_text(text, encoding="utf-8")
    argv = ["wrk", "--threads=1", f"--connections={connections}", f"--duration={seconds:g}s", "--latency"]
    argv += ["--timeout=20s", f"--script={script}", request.url]
    out = subprocess.run(argv, check=False, capture_output=True, text=True)
    try:
        found = msgspec.json.decode(out.stdout.strip().splitlines()[-1])
    except (msgspec.DecodeError, IndexError):
        raise SandboxError(f"wrk failed: {(out.stderr or out.stdout).strip()[-400:]}") from None
    if found["refused"] or found["broken"] or not found["answered"]:
        raise SandboxError(
            f"{request.url}: {found['refused']} refusals, {found['broken']} broken connections"
        )
    return Load(
        per_s=found["answered"] / found["us"] * 1e6,
        p50_ms=found["p50_us"] / 1000,
        p99_ms=found["p99_us"] / 1000,
        answered=found["answered"],
    )


def _lua(text: str) -> str:
    """A Lua string literal."""
    return '"' + "".join(f"\\{ord(char):03d}" if char in '"\\\r\n' else char for char in text) + '"'


class _Connection(asyncio.Protocol):
    """One connection: a request, its answer, the next request, until the time is over."""

    def __init__(self, request: bytes, end: float, took: list[float]) -> None:
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request, self._end, self._took = request, end, took
        self._parser = httptools.HttpResponseParser(self)
        self._since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]  # TCP's
        self._send()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.over.done():
            self.over.set_exception(SandboxError(f"a connection broke: {exc or 'closed by the server'}"))

    def on_message_complete(self) -> None:
        """Note the time that the answer took, and go on."""
        now = time.perf_counter()
        status = self._parser.get_status_code()
        if self.over.done():
            return
        if not 200 <= status < 300:
            self.over.set_exception(SandboxError(f"the server answered {status}"))
            self._transport.close()
        else:
            self._took.append(now - self._since)
            if now < self._end:
                self._send()
            else:
                self.over.set_result(None)
                self._transport.close()

    def _send(self) -> None:
        self._since = time.perf_counter()
        self._transport.write(self._request)


def _headers(request: Request) -> dict[str, str]:
    return {"Content-Type": "application/json", **request.headers}


async def _own(request: Request, connections: int, seconds: float) -> Load:
    parts = urlsplit(request.url)
    head = [f"POST {parts.path} HTTP/1.1", f"Host: {parts.netloc}", f"Content-Length: {len(request.body)}"]
    head += [f"{name}: {value}" for name, value in _headers(request).items()]
    octets = "\r\n".join([*head, "", ""]).encode() + request.body
    took: list[float] = []
    began = time.perf_counter()
    loop = asyncio.get_running_loop()
    made = await asyncio.gather(
        *(
            loop.create_connection(
                lambda: _Connection(octets, began + seconds, took), parts.hostname or "", parts.port or 80
            )
            for _ in range(connections)
        )
    )
    ends = await asyncio.gather(*(connection.over for _, connection in made), return_exceptions=True)
    elapsed = time.perf_counter() - began
    if faults := [end for end in ends if end is not None]:
        raise faults[0]
    return Load(
        per_s=len(took) / elapsed,
        p50_ms=percentile(took, 0.5) * 1000,
        p99_ms=percentile(took, 0.99) * 1000,
        answered=len(took),
    )
