"""What tests of webhooks share: an endpoint of the first tenant, the chore that fills its queue, and who tells it.

async def test_something(hooks, receiver, app):
    hook = await hooks.add(receiver.url + "/a", ["email.*"])
    send(app)
    await hooks.fan_out()
    async with hooks.deliverer(): ...
"""

import contextlib
import os
from collections.abc import AsyncIterator
from ipaddress import ip_network
from typing import Any, NamedTuple
from uuid import UUID

import pytest

from pgmail.hooks.deliverer import Deliverer
from pgmail.hooks.endpoints import Endpoints
from pgmail.sealing.keks import Keks
from pgmail.store import hooks as store
from pgmail.store.database import Database as Pool
from pgmail.transport.guarded_http import GuardedHttp
from tests.receiver import Receiver
from tests.sql.kit import one, rows
from tests.waiting import eventually

LOOPBACK = (ip_network("127.0.0.0/8"),)


class Hook(NamedTuple):
    id: UUID
    secret: str


class Hooks:
    """One process's worth of webhooks, step by step."""

    def __init__(self, db: Any, pool: Pool) -> None:
        self.db, self.pool = db, pool
        self.keks = Keks({"first": os.urandom(32)})
        self.endpoints = Endpoints(self.keks, LOOPBACK)
        self.owner = db.connect()

    async def add(self, url: str, types: Any = ("email.*",), **more: Any) -> Hook:
        connection = await self.db.aconnect("admin")
        return Hook(*await self.endpoints.add(connection, store.NewHook(url=url, types=list(types), **more)))

    async def fan_out(self, most: int = 1_000) -> int:
        """Everything that is new; how many deliveries that makes."""
        queued = 0
        while True:
            found = await store.fan_out(self.pool, most)
            queued += found.queued
            if not found.more:
                return queued

    @contextlib.asynccontextmanager
    async def deliverer(self, **options: Any) -> AsyncIterator[Deliverer]:
        made = Deliverer(
            self.pool,
            options.pop("keks", self.keks),
            options.pop("client", lambda: GuardedHttp(LOOPBACK)),
            **({"concurrency": 8, "rate": 10_000} | options),
        )
        await made.start()
        try:
            yield made
            await made.drain(20)
        finally:
            await made.stop()
            await made.ended()

    async def deliver(self, **options: Any) -> None:
        """Tell all that is due now."""
        async with self.deliverer(**options):
            await eventually(lambda: not self.due(), what="all told")

    def due(self) -> int:
        return one(
            self.owner,
            "select count(*) from pgmail.hook_queue q"
            " join pgmail.hook h on h.tenant_id = q.tenant_id and h.id = q.hook_id"
            " where q.due_at <= pgmail.now() and h.enabled and (h.rest_until is null or h.rest_until <= pgmail.now())",
        )

    def waiting(self) -> list[Any]:
        return rows(
            self.owner,
            "select event_id, attempts, due_at from pgmail.hook_queue order by queued_at, event_id",
        )

    def log(self) -> list[Any]:
        """Calls, oldest first: type, attempt, outcome, status, error."""
        return rows(
            self.owner, "select type, attempt, outcome, status, error from pgmail.hook_attempt order by id"
        )

    def state(self, hook: Hook) -> Any:
        """Enabled, reason, fails, failing_since is set."""
        return rows(
            self.owner,
            "select enabled, reason, fails, failing_since is not null from pgmail.hook where id = %s",
            [hook.id],
        )[0]


@pytest.fixture
async def pool(db) -> AsyncIterator[Pool]:
    made = Pool(db.dsn_for("worker"), name="test")
    await made.open()
    yield made
    await made.close()


@pytest.fixture
async def hooks(db, pool) -> Hooks:
    return Hooks(db, pool)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as made:
        yield made


@pytest.fixture
def app(db):
    return db.connect("producer")
