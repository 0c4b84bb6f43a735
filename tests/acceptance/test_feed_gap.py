"""Nobody misses an event: writers that commit in any order, a listener that comes back at random, each fact once."""

import asyncio
import contextlib
import random
import sys
import time
from collections import defaultdict
from uuid import UUID

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.api.conftest import EMAIL, new_key
from tests.api.test_api_server import serving
from tests.sql.kit import one, rows
from tests.sse import listening
from tests.waiting import eventually

WRITERS = 16
ALL = """
select r.id from pgmail.recipient r union all select e.id from pgmail.event e
"""
ORDER = """
select x.email, array_agg(x.id order by x.xid, x.step, x.id) from (
  select r.message_id as email, m.xid, 0 as step, r.id
  from pgmail.recipient r join pgmail.message m on m.id = r.message_id
  union all select e.message_id, e.xid, 1, e.id from pgmail.event e) x group by 1
"""


async def write(dsn: str, seconds: float, dice: random.Random) -> None:
    """Send and cancel in transactions that take their time to commit, and sometimes do not."""
    until = time.monotonic() + seconds
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        while time.monotonic() < until:
            emails = []
            for _ in range(dice.randint(1, 3)):
                to = [f"a{dice.random()}@example.org" for _ in range(dice.randint(1, 3))]
                cursor = await connection.execute("select pgmail.send(%s)", [Jsonb({**EMAIL, "to": to})])
                emails += [row[0] for row in await cursor.fetchall()]
                await asyncio.sleep(dice.random() * 0.05)
            if dice.random() < 0.5:
                await connection.execute("select pgmail.cancel(%s)", [dice.choice(emails)])
            await asyncio.sleep(dice.random() ** 4 * 0.5)
            await (connection.rollback() if dice.random() < 0.2 else connection.commit())
            if emails and dice.random() < 0.5:  # in a transaction of its own
                with contextlib.suppress(psycopg.Error):
                    await connection.execute("select pgmail.cancel(%s)", [emails[0]])
                await connection.commit()


async def listen(url: str, key: str, start: str, dice: random.Random, found: list[dict]) -> None:
    """Listen, hang up after some events, come back with the last id; until cancelled."""
    last = start
    while True:
        patience = dice.randint(1, 60)
        with contextlib.suppress(TimeoutError):
            async with listening(url, key, last=last) as stream, asyncio.timeout(dice.random() * 2 + 0.1):
                while patience:
                    told = await stream.next()
                    last = stream.last
                    if told is not None:
                        found.append(told.data)
                        patience -= 1


@pytest.mark.parametrize("seconds", [6, pytest.param(60, marks=pytest.mark.long)])
async def test_every_event_is_told_once_and_in_order_however_transactions_commit(db, seconds):
    dice = random.Random(seconds)
    key, dsn = new_key(db), db.dsn_for("producer")
    with serving(db.dsn_for("api")) as url, psycopg.connect(dsn) as idle, db.connect() as owner:
        async with listening(url, key) as stream:
            start = stream.last
        idle.execute("select pgmail.send(%s)", [Jsonb({**EMAIL, "subject": "idle"})])
        found: list[dict] = []
        steady: list[dict] = []

        async def listen_without_a_break() -> None:
            async with listening(url, key, last=start) as stream:
                while True:
                    if (told := await stream.next()) is not None:
                        steady.append(told.data)

        listeners = [
            asyncio.create_task(listen(url, key, start, dice, found)),
            asyncio.create_task(listen_without_a_break()),
        ]
        await asyncio.gather(*[write(dsn, seconds, random.Random(i)) for i in range(WRITERS)])
        before = len(found)
        assert before > 0, "an idle transaction held nothing up"
        idle.commit()
        expected = {row[0] for row in rows(owner, ALL)}
        progress = [(len(found), len(steady), len(expected))]
        try:
            # As long as it gets on: 16 writers may have been faster than who hangs up all the time.
            while min(len(found), len(steady)) < len(expected):
                await eventually(lambda: len(found) + len(steady) > sum(progress[-1][:2]), 30)
                progress.append((len(found), len(steady), len(expected)))
        finally:
            sys.stdout.write(f"{progress[0]} when the writers ended, {progress[-1]} at last\n")
            for task in listeners:
                task.cancel()
            await asyncio.gather(*listeners, return_exceptions=True)
        for told in (found, steady):
            ids = [UUID(event["id"]) for event in told]
            assert len(ids) == len(set(ids)), "told twice"
            assert set(ids) == expected
            journeys = defaultdict(list)
            for event in told:
                journeys[UUID(event["data"]["email_id"])].append(UUID(event["id"]))
            assert journeys == dict(rows(owner, ORDER))
        assert one(owner, "select count(*) from pgmail.event") > 20
