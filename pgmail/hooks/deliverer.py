"""Tells endpoints of events: claims what is due, calls, records what came of it.

A process has one `Deliverer`. It has so many calls under way at most (`concurrency`), of one endpoint a quarter of
them, so that one that lets us wait holds up nobody else; and it makes `rate` calls a second at most, a tenth of that
while mail needs all that its process has: a call takes about as much of a processor as a mail. It opens no
connection of its own to the database: a claim and a settle are short statements on the pool of its process.

What can go wrong: the process dies between a call and its record. The lease runs out after `LEASE_SECONDS`, and
another process tells the same event again, under the same webhook-id. A data key that this process cannot open: it
claims only what it has keys for; what nobody has keys for waits, and `pgmail webhook show` says since when.
"""

from __future__ import annotations

import asyncio
import base64
import math
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Protocol
from uuid import UUID

import structlog

from pgmail.domain import webhooks
from pgmail.domain.targets import shown_url
from pgmail.errors import DatabaseAway, KeyMissing, SealBroken
from pgmail.sealing.box import place, unseal
from pgmail.sealing.keks import Keks
from pgmail.service import Loop
from pgmail.shaping.hook_retry import judge
from pgmail.store import hooks as store
from pgmail.store.database import Database
from pgmail.transport.http_answer import Answer

_log = structlog.get_logger()

LEASE_SECONDS = 60.0  # longer than a call may take, with room for a database that is slow
POLL_SECONDS = 0.5
SETTLE_SECONDS = 0.05
RETRY_SECONDS = 2.0
LOAD = 0.4  # of a processor; waiting for slow mail servers takes next to nothing of one
LOAD_SECONDS = 0.5
LAST_SECONDS = 5.0  # for calls under way when told to stop; what is cut off is told again, under the same id
SAMPLE = (
    b'{"message":"This is a test of your webhook. An event of an email has its facts here.","sample":true}'
)
_ADDRESS = re.compile(r"[^\s@<>\"']+@[^\s@<>\"']+")


class Client(Protocol):
    """What calls: `transport.guarded_http.GuardedHttp`."""

    async def post(self, url: str, body: bytes, headers: dict[str, str]) -> Answer:
        """Make a call and tell what came of it."""
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...


class Deliverer(Loop):
    """A service: `run_all` runs it beside a process's others."""

    def __init__(
        self,
        database: Database,
        keks: Keks,
        client: Callable[[], Client],
        *,
        concurrency: int,
        rate: int,
        pressed: Callable[[], bool] = lambda: False,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        random: Callable[[], float] = random.random,
    ) -> None:
        """`client` makes what calls, when there is something to call. `rate` is calls a second.

        `pressed` tells whether the process has as much mail in hand as it takes.
        """
        super().__init__("webhooks")
        self._database, self._keks, self._make = database, keks, client
        self._client: Client | None = None
        self._concurrency, self._each = concurrency, max(1, concurrency // 4)
        self._tokens = _Tokens(rate)
        self._load = _Load(pressed)
        self._now, self._random = now, random
        self._busy: Counter[UUID] = Counter()
        self._calls: set[asyncio.Task[None]] = set()
        self._results: list[store.Result] = []
        self._wake = asyncio.Event()
        self._data_keys: dict[tuple[int, int], bytes] = {}

    async def run(self) -> None:
        """Look, call, record, until told to stop; then finish the calls under way."""
        self.ready()
        look_at, last_at = 0.0, math.inf
        try:
            while (self._calls or self._results or not self.draining.is_set()) and time.monotonic() < last_at:
                if self.draining.is_set():
                    last_at = min(last_at, time.monotonic() + LAST_SECONDS)
                self._wake.clear()
                try:
                    if self._results:
                        await self._settle()
                    if not self.draining.is_set() and time.monotonic() >= look_at:
                        more = await self._claim()
                        look_at = time.monotonic() + (SETTLE_SECONDS if more else POLL_SECONDS)
                except Exception as error:  # noqa: BLE001 - webhooks in trouble must not end a process that sends mail
                    if not isinstance(error, DatabaseAway):
                        _log.exception("webhooks.failed")
                        self._results.clear()  # what could not be recorded is told again when its lease ends
                    look_at = time.monotonic() + RETRY_SECONDS
                    await self._pause(RETRY_SECONDS)
                    continue
                await self._pause(SETTLE_SECONDS if self._results else look_at - time.monotonic())
        finally:
            for call in self._calls:
                call.cancel()
            await asyncio.gather(*self._calls, return_exceptions=True)
            if self._client is not None:
                await self._client.close()

    async def _pause(self, seconds: float) -> None:
        """Wait for results, for the next look, or to be told to stop."""
        if self.draining.is_set():
            if not self._calls and not self._results:
                return
            seconds = POLL_SECONDS  # nothing is looked for any more: only calls that end are waited for
        waits = [asyncio.ensure_future(self._wake.wait())]
        if not self.draining.is_set():
            waits.append(asyncio.ensure_future(self.draining.wait()))
        try:
            await asyncio.wait(waits, timeout=max(seconds, 0.001), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if self._results and not self.draining.is_set():
            await asyncio.sleep(SETTLE_SECONDS)  # what else comes in meanwhile is recorded together

    async def _claim(self) -> bool:
        """Begin what is due; whether there may be more."""
        self._tokens.slow = self._load.high()
        free = min(self._concurrency - len(self._calls), self._tokens.left())
        if free <= 0 or not self._keks:
            return bool(self._keks)
        rows = await store.claim(
            self._database,
            self._keks.names,
            most=free,
            each=self._each,
            lease_seconds=LEASE_SECONDS,
            busy=self._busy,
            turn=self._random(),
        )
        self._tokens.take(len(rows))
        for row in rows:
            self._busy[row.hook_id] += 1
            call = asyncio.create_task(self._call(row), name="webhook")
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)
        return bool(rows)

    async def _call(self, row: Any) -> None:
        try:
            self._results.append(await self._told(row))
        except asyncio.CancelledError:
            raise
        except Exception:  # noqa: BLE001 - a fault of ours must not take the others along; its lease runs out
            _log.exception("webhook.crashed", webhook=str(row.hook_id), event_id=str(row.event_id))
        finally:
            self._busy[row.hook_id] -= 1
            if not self._busy[row.hook_id]:
                del self._busy[row.hook_id]
            self._wake.set()

    async def _told(self, row: Any) -> store.Result:
        """Make one call; what came of it."""
        if row.data is None and row.type != "webhook.test":
            return _result(row, outcome="dropped", error="its email is past its retention")
        body = payload(row.type, row.at, SAMPLE if row.data is None else row.data.encode())
        id_ = str(row.event_id)
        try:
            secrets = [self._secret(row, secret) for secret in row.secrets]
        except (KeyMissing, SealBroken) as error:
            answer = Answer(None, 0, error=f"not called, since it cannot be signed: {error}")
        else:
            if self._client is None:
                self._client = self._make()
            head = webhooks.headers(id_, int(self._now().timestamp()), body, secrets)
            answer = await self._client.post(row.url, body, head)
        verdict = judge(answer.status, row.attempt, answer.retry_after, now=self._now(), random=self._random)
        if verdict.outcome != "delivered":
            _log.info(
                "webhook.not_delivered",
                webhook=str(row.hook_id),
                tenant=row.tenant_id,
                url=shown_url(row.url),
                event_id=id_,
                attempt=row.attempt,
                status=answer.status,
                error=answer.error,
                outcome=verdict.outcome,
            )
        return _result(
            row,
            outcome=verdict.outcome,
            seconds=verdict.seconds,
            rest=verdict.rest,
            gone=verdict.gone,
            status=answer.status,
            ms=answer.ms,
            error=answer.error or _redirect(answer.status),
            # Of a refusal, what it says; whose address stands in it is nobody's business here.
            answer=None if answer.good or not answer.text else _shown(answer.text),
        )

    def _secret(self, row: Any, secret: dict[str, Any]) -> bytes:
        """Open a secret. Raises KeyMissing, SealBroken."""
        at = row.tenant_id, secret["key"]
        if at not in self._data_keys:
            self._data_keys[at] = self._keks.unwrap(
                row.tenant_id, secret["kek"], base64.b64decode(secret["wrapped"])
            )
        sealed = base64.b64decode(secret["sealed"])
        return unseal(self._data_keys[at], sealed, place(row.tenant_id, row.hook_id, webhooks.PURPOSE))

    async def _settle(self) -> None:
        results, self._results = self._results, []
        try:
            await store.settle(self._database, results)
        except BaseException:
            self._results = results + self._results
            raise


class _Tokens:
    """So many calls a second, up to a second's worth at once; a tenth of it while `slow`."""

    def __init__(self, rate: int) -> None:
        self._rate, self._left, self._at = float(rate), float(rate), time.monotonic()
        self.slow = False

    def left(self) -> int:
        now, rate = time.monotonic(), max(1.0, self._rate / 10) if self.slow else self._rate
        self._left = min(rate, self._left + (now - self._at) * rate)
        self._at = now
        return int(self._left)

    def take(self, count: int) -> None:
        self._left -= count


class _Load:
    """Whether this process is short of time: all its slots have mail, and it used most of a processor lately."""

    def __init__(self, pressed: Callable[[], bool]) -> None:
        self._pressed = pressed
        self._at, self._used, self._share = time.monotonic(), time.process_time(), 0.0

    def high(self) -> bool:
        now = time.monotonic()
        if now - self._at >= LOAD_SECONDS:
            used = time.process_time()
            self._share = (used - self._used) / (now - self._at)
            self._at, self._used = now, used
        return self._share > LOAD and self._pressed()


def payload(type: str, at: datetime, data: bytes) -> bytes:
    """Return a body as Standard Webhooks has it; `data` is JSON."""
    when = at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return b'{"type":"%s","timestamp":"%s","data":%s}' % (type.encode(), when.encode(), data)


def _result(row: Any, **facts: Any) -> store.Result:
    return store.Result(
        tenant_id=row.tenant_id,
        hook_id=row.hook_id,
        event_id=row.event_id,
        email_id=row.email_id,
        recipient_id=row.recipient_id,
        type=row.type,
        at=row.at,
        attempt=row.attempt,
        claims=row.claims,
        **facts,
    )


def _redirect(status: int | None) -> str | None:
    return "redirects are not followed" if status is not None and 300 <= status < 400 else None


def _shown(text: str) -> str:
    """Return the beginning of an answer, on one line, without addresses."""
    return _ADDRESS.sub("***", " ".join(text.replace("\0", "").split()))[:200]
