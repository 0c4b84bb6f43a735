"""What the tests of the HTTP API share: a key, a client on the app itself, and a wire to the database to cut.

async def test_something(api, db):
    answer = await api.post("/emails", json={...})      # as the first tenant's key
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from pgmail.config import Settings
from pgmail.domain.keys import make_key
from pgmail.store.database import Database
from tests.routed import create_app
from tests.sql.kit import LOCKS_HERE

EMAIL = {"from": "Shop <shop@example.com>", "to": "ada@example.org", "subject": "Hi", "text": "Hello"}


def new_key(db: Any, name: str = "tests") -> str:
    """Make a key of the first tenant, as an operator would."""
    key, hint, hash_ = make_key()
    with db.connect() as connection:
        connection.execute("select pgmail.create_key(%s, %s, %s)", [name, hint, hash_])
    return key


@pytest.fixture
def key(db: Any) -> str:
    return new_key(db)


@contextlib.asynccontextmanager
async def client(
    dsn: str,
    key: str | None,
    *,
    settings: Settings | None = None,
    clock: Any = None,
    keks: Any = None,
    make: Any = create_app,
    **pool: Any,
):
    """A client of an app on this database, without a socket in between. `make` is what makes the app."""
    database = Database(dsn, name="api-test", low=0, high=pool.pop("high", 4), **pool)
    await database.open()
    app = make(settings or Settings(), database, clock=clock, keks=keks)
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    try:
        async with httpx.AsyncClient(
            transport=transport, base_url="http://pgmail.test", headers=headers
        ) as made:
            made.app = app
            yield made
    finally:
        await database.close()


@pytest.fixture
async def api(db: Any, key: str) -> AsyncIterator[httpx.AsyncClient]:
    async with client(db.dsn_for("api"), key) as made:
        yield made


async def waits_for_a_lock(watcher: Any) -> None:
    """Return when a statement waits for the lock of `message`; PostgreSQL tells nobody, so it is asked."""
    waits = f"select exists (select from {LOCKS_HERE} where not granted and relation = 'pgmail.message'::regclass)"
    async with asyncio.timeout(30):
        while not watcher.execute(waits).fetchone()[0]:  # noqa: ASYNC110
            await asyncio.sleep(0)


class Wire:
    """A TCP connection to the database that can be cut and mended."""

    def __init__(self, dsn: str) -> None:
        parts = urlsplit(dsn)
        self._target = (parts.hostname, parts.port)
        self._parts = parts
        self._open: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    @property
    def dsn(self) -> str:
        user = self._parts.netloc.rpartition("@")[0]
        return self._parts._replace(netloc=f"{user}@127.0.0.1:{self.port}").geturl()

    async def mend(self) -> None:
        self._server = await asyncio.start_server(self._join, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        self._server.close()
        for writer in list(self._open):
            writer.transport.abort()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(*self._target)
        self._open |= {writer, back}
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, back))
                group.create_task(self._pump(there, writer))
        finally:
            for end in (writer, back):
                self._open.discard(end)
                end.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while octets := await reader.read(65_536):
                writer.write(octets)
                await writer.drain()
        writer.close()


@pytest.fixture
async def wire(db: Any) -> AsyncIterator[Wire]:
    made = Wire(db.dsn_for("api"))
    await made.mend()
    yield made
    await made.cut()
