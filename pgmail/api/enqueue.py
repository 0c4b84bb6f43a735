"""`POST /emails`, the one route that is worth doing without the framework.

`Enqueue` is what the route does; `bare` is the route itself, from the octets of a request to the octets of
its answer. It keeps the rules of the others: a key first, then the body by its type and size, and every error
as a problem. The framework has the same route (`emails.send_email`) for the document at /schema, and for
paths that only look alike.

What can go wrong: the two could answer differently. Both do nothing but read a request and call `Enqueue`;
the tests of bodies, keys and problems go through this one.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
from litestar.exceptions.http_exceptions import RequestEntityTooLarge
from litestar.types import HTTPScope, Receive, Send

from pgmail.access.keyring import Keyring, need_scope
from pgmail.access.origin import Origins
from pgmail.api.bodies import Body, aside, check_type, in_time, read
from pgmail.api.coalesce import Coalescer
from pgmail.api.doorman import Doorman
from pgmail.api.intake import explain, ready_email
from pgmail.api.problems import media_type, problem_for
from pgmail.api.traced import carry
from pgmail.errors import Refused
from pgmail.seals import Sealer, TenantSeal
from pgmail.store import emails as store
from pgmail.store.database import Database
from pgmail.store.keys import Caller

LARGE = 65_536  # octets; a larger email goes by itself, so that nobody waits for it

SCOPE = "send"
NOBODY = 500  # what is counted where there was nobody left to answer

Header = tuple[bytes, bytes]

_JSON: Header = (b"content-type", b"application/json")
_READ = frozenset(
    {
        *(b"authorization", b"content-type", b"content-length", b"content-encoding"),
        *(b"idempotency-key", b"accept", b"traceparent"),
    }
)


class _Gone(Exception):  # noqa: N818 - it is no error
    """The client hung up before its body was read."""


class Enqueued(NamedTuple):
    """An email's id, and the headers of quotas that go with the answer."""

    id: str
    headers: dict[str, str]


class Enqueue:
    """Takes one email in: ready for SQL, then together with others, or alone if it is large."""

    def __init__(
        self, database: Database, coalescer: Coalescer, doorman: Doorman, sealer: Sealer | None = None
    ) -> None:
        self._database = database
        self._sealer = sealer
        self._coalescer = coalescer
        self._doorman = doorman

    def glance(self, caller: Caller) -> None:
        """Refuse at once, before its body is read, who has nothing left for a moment. Raises Limited."""
        self._doorman.glance(caller)

    async def __call__(self, caller: Caller, body: Body, key: str | None) -> Enqueued:
        """Enqueue the email in a body; `key` is the header's idempotency key.

        Raises Refused and DatabaseAway.
        """
        self._doorman.glance(caller, body.value)
        now = datetime.now(UTC)
        seal = None if self._sealer is None else await self._sealer.of(caller)
        ready = await aside(body.size, _ready, caller, body, key, now, seal)
        limits = await self._doorman.let_in(caller, body.value)
        try:
            if len(ready.json) <= LARGE:
                return Enqueued(await self._coalescer.send(caller, ready.json, ready.key), limits)
            found = await store.send(self._database, caller, ready.json, keyed=ready.key is not None)
            return Enqueued(str(found), limits)
        except Refused as fault:
            if fault.code == "sealing_required" and self._sealer is not None and self._sealer.forget(caller):
                # Since a moment that is not known here yet.
                known, seal = seal, await self._sealer.of(caller)
                if seal is not None and seal.wants(body.value) and not (known and known.wants(body.value)):
                    return await self(caller, body, key)
            raise (await aside(body.size, explain, fault, body.value, key, now)) from None


def _ready(caller: Caller, body: Body, key: str | None, now: datetime, seal: TenantSeal | None) -> Any:
    return ready_email(body.value, key, now, plain=body.plain, seal=seal, caller=caller)


class Bare:
    """The route as an ASGI application, which tells the status of its answers.

    `limit` is the largest body, in octets; `traced`: emails carry a trace on.
    """

    def __init__(
        self, keyring: Keyring, origins: Origins, enqueue: Enqueue, limit: int, *, traced: bool = False
    ) -> None:
        self._keyring = keyring
        self._origins = origins
        self._enqueue = enqueue
        self._limit = limit
        self._traced = traced

    async def __call__(self, scope: HTTPScope, receive: Receive, send: Send) -> int:
        """Answer a request, and return the status of the answer."""
        given = _headers(scope["headers"])
        status, headers = 200, [_JSON]
        try:
            body, limits = await self._answer(given, self._origins.of(scope), receive)
            headers += [(name.lower().encode(), value.encode()) for name, value in limits.items()]
        except _Gone:
            return NOBODY
        except Exception as error:  # noqa: BLE001 - whatever it is, it is answered
            status, headers, body = _problem(error, scope["path"], given.get(b"accept", ""))
        headers.append((b"content-length", b"%d" % len(body)))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})
        return status

    async def _answer(
        self, headers: dict[bytes, str], address: str | None, receive: Receive
    ) -> tuple[bytes, dict[str, str]]:
        caller = await self._keyring.caller(headers.get(b"authorization"), address)
        need_scope(caller, SCOPE)
        check_type(headers.get(b"content-type", ""), headers.get(b"content-encoding", "identity"))
        raw = await in_time(self._body(headers.get(b"content-length", ""), receive))
        self._enqueue.glance(caller)
        body = await aside(len(raw), read, raw)
        if self._traced:
            carry(body.value, headers.get(b"traceparent"))
        found = await self._enqueue(caller, body, headers.get(b"idempotency-key"))
        return b'{"id":"%s"}' % found.id.encode(), found.headers

    async def _body(self, announced: str, receive: Receive) -> bytes:
        if announced.isdigit() and int(announced) > self._limit:
            raise RequestEntityTooLarge
        parts: list[bytes] = []
        size = 0
        while True:
            message: Any = await receive()
            if message["type"] != "http.request":
                raise _Gone
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._limit:
                raise RequestEntityTooLarge
            if not message.get("more_body", False):
                return parts[0] if len(parts) == 1 else b"".join(parts)


def _headers(raw: Iterable[tuple[bytes, bytes]]) -> dict[bytes, str]:
    """Return those headers that this route reads; of one given twice the first."""
    found: dict[bytes, str] = {}
    for name, value in raw:
        if name in _READ and name not in found:
            found[name] = value.decode("latin-1")
    return found


def _problem(error: Exception, path: str, accept: str) -> tuple[int, list[Header], bytes]:
    problem, more = problem_for(error, "POST", path)
    headers = [(b"content-type", media_type(accept).encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in more.items()]
    return problem.status, headers, msgspec.json.encode(problem)
