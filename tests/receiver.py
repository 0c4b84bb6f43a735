"""A receiver of webhooks on the loopback: answers as it is told to, and keeps what it got.

async with Receiver() as receiver:
    receiver.answers["/slow"] = lambda got: web.Response(status=503)
    ... post to receiver.url + "/slow" ...
    assert receiver.got[0].verify("whsec_...")
"""

import base64
import hashlib
import hmac
import inspect
import json
import ssl
from collections.abc import Callable
from typing import Any, NamedTuple, Self

from aiohttp import web


class Got(NamedTuple):
    """One request as it came."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def verify(self, secret: str) -> bool:
        """The algorithm of the Standard Webhooks specification, written from its text."""
        key = base64.b64decode(secret.removeprefix("whsec_"))
        signed = f"{self.id}.{self.headers['webhook-timestamp']}.".encode() + self.body
        wanted = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
        versions = [part.split(",", 1) for part in self.headers["webhook-signature"].split(" ")]
        return any(name == "v1" and hmac.compare_digest(text, wanted) for name, text in versions)


class Receiver:
    """One server on a port of its own; 204 unless a path was given another answer."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.got: list[Got] = []
        self.answers: dict[str, Callable[[Got], Any]] = {}
        self.port = 0
        self._tls = tls
        self._runner: Any = None

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def of(self, path: str) -> list[Got]:
        return [got for got in self.got if got.path == path]

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=10 * 1024 * 1024)
        app.router.add_route("*", "/{tail:.*}", self._take)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _take(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        got = Got(request.path, headers, await request.read())
        self.got.append(got)
        answer = self.answers.get(request.path, lambda _: web.Response(status=204))(got)
        return await answer if inspect.isawaitable(answer) else answer
