"""A thousand listen: one reader of the database, nobody misses its own, and the memory stays where it was."""

import asyncio
import os
import resource
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest

from pgmail.domain.keys import make_key
from tests.sql.kit import SESSIONS_HERE, one, rows
from tests.waiting import eventually

SERVER = """
import sys
from pgmail import log
from pgmail.api.server import serve
from pgmail.config import Settings
log.configure("error")
settings = Settings(api_database_url=sys.argv[1], api_port=0, api_pool_size=3)
serve(settings, ready=lambda host, port: print(port, flush=True))
"""
# One event a tenant and round, of one recipient each. What it tells is when it was written.
ROUND = """
insert into pgmail.event (tenant_id, recipient_id, message_id, type, detail)
select tenant_id, id, message_id, 'email.sent', extract(epoch from clock_timestamp())::text
from pgmail.recipient, generate_series(1, %s)
"""
READING = f"""
select count(*) from {SESSIONS_HERE}
where application_name like 'pgmail-api%' and state = 'active' and query like '%feed_v1%'
"""


def tenants(db, count: int) -> list[str]:
    """So many tenants with one recipient each, and their keys."""
    keys = []
    with db.connect() as owner:
        for number in range(count):
            key, hint, hash_ = make_key()
            tenant = one(owner, "select pgmail.create_tenant(%s)", [f"t{number}"])
            owner.execute(
                "insert into pgmail.api_key (tenant_id, name, hint, hash, scopes) values (%s, 'x', %s, %s, '{read}')",
                [tenant, hint, hash_],
            )
            owner.execute(
                "insert into pgmail.recipient (tenant_id, id, message_id, position, role, address, site) "
                "values (%s, pgmail.uuid7(), pgmail.uuid7(), 1, 'to', 'ada@example.org', 'example.org')",
                [tenant],
            )
            keys.append(key)
    return keys


class Ear:
    """One listener, with as little of a client as possible."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.ready = asyncio.Event()
        self.told = 0
        self.late: list[float] = []
        self.ids: Counter[bytes] = Counter()

    async def listen(self, port: int, *, closely: bool) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
        request = f"GET /events/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self.key}\r\n\r\n"
        writer.write(request.encode())
        try:
            status = await reader.readline()
            assert b" 200 " in status, (status, await reader.read(4_000))
            while line := await reader.readline():
                if line.startswith(b": listening"):
                    self.ready.set()
                elif line.startswith(b"event: dropped"):
                    raise AssertionError(await reader.readline())
                elif line.startswith(b"data: "):
                    self.told += 1
                    if closely:
                        at = float(line.split(b'"detail":"', 1)[1].split(b'"', 1)[0])
                        self.late.append(time.time() - at)
                        self.ids[line.split(b'"id":"', 1)[1][:36]] += 1
        finally:
            writer.close()


def ended(tasks: list[asyncio.Task[None]]) -> list[object]:
    """Why listeners ended that should not have."""
    return [task.exception() or "hung up" for task in tasks if task.done()]


def memory(pid: int) -> float:
    """Megabytes of a process in RAM."""
    words = Path(f"/proc/{pid}/statm").read_text().split()
    return int(words[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


async def rounds(dsn: str, per_second: int, seconds: float, each: int) -> int:
    """Write events at an even rate; how many a tenant."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        began, done = time.monotonic(), 0
        while time.monotonic() - began < seconds:
            await connection.execute(ROUND, [each])
            done += each
            await asyncio.sleep(max(0.0, began + done / per_second - time.monotonic()))
    return done


class Crowd(NamedTuple):
    """How many listen, of how many tenants, and how many events a second happen to each of these, for how long."""

    listeners: int
    tenants: int
    per_second: int
    seconds: int


@pytest.mark.parametrize(
    "crowd", [Crowd(150, 15, 20, 3), pytest.param(Crowd(1_000, 50, 40, 30), marks=pytest.mark.long)]
)
async def test_listeners_of_many_tenants_miss_nothing_and_cost_one_reader(db, crowd):
    listeners, count, per_second, seconds = crowd
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8_192)), hard))
    keys = tenants(db, count)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVER, db.dsn_for("api"), stdout=asyncio.subprocess.PIPE, env=dict(os.environ)
    )
    tasks = []
    try:
        port = int(await asyncio.wait_for(process.stdout.readline(), 60))
        ears = [Ear(keys[i % count]) for i in range(listeners)]
        tasks = [asyncio.create_task(ear.listen(port, closely=i < count)) for i, ear in enumerate(ears)]
        async with asyncio.timeout(90):
            await eventually(lambda: ended(tasks) or all(ear.ready.is_set() for ear in ears), 80)
        assert not ended(tasks)
        before, most_reading = memory(process.pid), 0
        with db.connect() as owner:
            writing = asyncio.create_task(rounds(db.dsn, per_second, seconds, each=2))
            while not writing.done():
                most_reading = max(most_reading, one(owner, READING))
                await asyncio.sleep(0.02)
            due = await writing
            assert one(owner, "select count(*) from pgmail.event") == due * count
            await eventually(lambda: min(ear.told for ear in ears) >= due, 30)
            connections = rows(
                owner, f"select count(*) from {SESSIONS_HERE} where application_name like 'pgmail-api%'"
            )[0][0]
        assert {ear.told for ear in ears} == {due}, "each was told each of its events once"
        assert all(len(ear.ids) == due for ear in ears[:count])
        assert most_reading <= 1
        assert connections <= 12  # the pools at their fullest, after so many keys were looked up at once
        grown = memory(process.pid) - before
        late = sorted(second for ear in ears[:count] for second in ear.late)
        figures = {
            "p50_ms": round(statistics.median(late) * 1000, 1),
            "p99_ms": round(late[int(len(late) * 0.99)] * 1000, 1),
            "events_per_second": round(due * count / crowd.seconds),
            "grown_mb": round(grown, 1),
            "memory_mb": round(memory(process.pid), 1),
        }
        sys.stdout.write(f"{crowd} {figures}\n")
        assert grown < 60
        assert not ended(tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        process.terminate()
        await process.wait()
