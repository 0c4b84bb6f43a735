"""The pool: opens late, heals by itself, speaks in pgmail's own errors."""

import asyncio
import os
import socket

import psycopg
import pytest

from pgmail import sqlfiles
from pgmail.errors import DatabaseAway
from pgmail.sqlfiles import Query
from pgmail.store.database import Database as Pool
from pgmail.store.database import fetch_many, fetch_one, keepalive, storable
from tests.sql.kit import SESSIONS_HERE, one
from tests.waiting import eventually
from tests.worker.cable import cable_to

_Q = sqlfiles.queries("maintain")
_WHO = sqlfiles.queries("presence")["workers"]


@pytest.fixture
async def pool(db):
    made = Pool(db.dsn_for("worker"), name="the pool", low=1, high=2, wait_seconds=2)
    await made.open()
    yield made
    await made.close()


async def test_rows_come_by_attribute_and_as_dictionaries(pool):
    now = await pool.one(_Q["clock"])
    assert now.now.tzinfo is not None
    assert [list(row) for row in await pool.dicts(_Q["clock"])] == [["now"]]
    assert await pool.many(_WHO) == []
    assert await pool.one(_WHO) is None
    await pool.run(_Q["clock"])


async def test_a_lent_connection_runs_queries_too(pool):
    async with pool.connection() as connection:
        assert (await fetch_one(connection, _Q["clock"])).now
        assert len(await fetch_many(connection, _Q["clock"])) == 1


async def test_connections_say_who_they_are_and_hold_no_transaction(db, pool):
    await pool.one(_Q["clock"])
    with psycopg.connect(db.superuser_dsn, autocommit=True) as admin:
        state = one(
            admin,
            "select min(state) from pg_stat_activity where application_name = 'the pool' and datname = %s",
            [db.name],
        )
    assert state == "idle"


async def test_opening_does_not_wait_for_a_server_that_is_away(db):
    async with cable_to(db.dsn) as cable:
        cable.cut()
        pool = Pool(cable.dsn(db.dsn), name="test", wait_seconds=0.3)
        await pool.open()
        assert not await pool.reachable()
        with pytest.raises(DatabaseAway):
            await pool.one(_Q["clock"])
        cable.mend()
        await eventually(pool.reachable)
        await pool.close()
        await pool.close()


async def test_where_people_wait_connections_that_broke_are_replaced_unseen(db):
    async with cable_to(db.dsn) as cable:
        pool = Pool(cable.dsn(db.dsn), name="test", low=1, high=2, check=True)
        await pool.open()
        assert await pool.reachable()
        cable.cut()
        cable.mend()
        assert (await pool.one(_Q["clock"])).now
        await pool.close()


async def test_elsewhere_a_connection_that_broke_costs_one_statement_and_no_more(db):
    async with cable_to(db.dsn) as cable:
        pool = Pool(cable.dsn(db.dsn), name="test", low=1, high=1)
        await pool.open()
        assert await pool.reachable()
        cable.cut()
        cable.mend()
        with pytest.raises(DatabaseAway):
            await pool.one(_Q["clock"])
        assert (await pool.one(_Q["clock"])).now
        await pool.close()


async def test_a_connection_that_breaks_in_the_middle_is_a_database_that_is_away(db):
    async with cable_to(db.dsn) as cable:
        pool = Pool(cable.dsn(db.dsn), name="test", low=1, high=1)
        await pool.open()

        async def breaks() -> None:
            async with pool.connection() as connection:
                cable.cut()
                await fetch_one(connection, _Q["clock"])

        with pytest.raises(DatabaseAway):
            await breaks()
        await pool.close()


async def test_who_waits_too_long_for_a_connection_is_told_so(db):
    pool = Pool(db.dsn, name="test", low=1, high=1, wait_seconds=0.2)
    await pool.open()
    async with pool.connection():
        with pytest.raises(DatabaseAway, match="became free in time"):
            await pool.one(_Q["clock"])
    await pool.close()


async def test_who_waits_while_the_server_comes_back_is_served_before_the_end_of_the_wait(db):
    async with cable_to(db.dsn) as cable:
        cable.cut()
        pool = Pool(cable.dsn(db.dsn), name="test", wait_seconds=20)
        await pool.open()
        asking = asyncio.create_task(pool.one(_Q["clock"]))
        await eventually(lambda: cable.refused)
        cable.mend()
        assert (await asyncio.wait_for(asking, 10)).now
        await pool.close()


async def test_a_fault_of_ours_is_not_hidden_as_an_outage(pool):
    with pytest.raises(psycopg.errors.UndefinedColumn):
        await pool.one(Query("broken", "one", "select no_such_column", "to fail"))
    assert await pool.reachable()


async def test_connections_that_a_burst_opened_are_closed_when_they_are_not_needed(db, owner):
    made = Pool(db.dsn_for("worker"), name="a burst", low=1, high=3, idle_seconds=0.1)
    await made.open()
    held = f"select count(*) from {SESSIONS_HERE} where application_name = 'a burst'"
    async with made.connection(), made.connection(), made.connection():
        assert one(owner, held) == 3
    await eventually(lambda: one(owner, held) == 1)
    assert await made.reachable()
    await made.close()


async def test_a_connection_that_falls_silent_is_given_up_and_the_next_one_works(db):
    async with cable_to(db.dsn) as cable:
        pool = Pool(cable.dsn(db.dsn), name="test", low=1, high=1, answer_seconds=0.3)
        await pool.open()
        try:
            assert await pool.one(_Q["clock"])
            cable.silence()
            async with asyncio.timeout(8):
                with pytest.raises(DatabaseAway):
                    await pool.one(_Q["clock"])
                assert await pool.one(_Q["clock"])
            cable.silence()
            patient = pool.patient(None)
            waits = asyncio.create_task(patient.one(_Q["clock"]))
            assert not (await asyncio.wait({waits}, timeout=1))[0]  # it has no limit
            async with asyncio.timeout(15):  # psycopg tries to cancel its statement
                waits.cancel()
                await asyncio.wait({waits})
        finally:
            await pool.close()


def test_connections_notice_a_server_that_fell_silent_unless_the_dsn_says_otherwise():
    assert keepalive("postgresql://u@h/d") == {
        "tcp_user_timeout": 10_000, "keepalives": 1, "keepalives_idle": 5, "keepalives_interval": 2,
        "keepalives_count": 3,
    }  # fmt: skip
    assert "tcp_user_timeout" not in keepalive("postgresql://u@h/d?tcp_user_timeout=500")
    assert "keepalives_idle" not in keepalive("host=h keepalives_idle=60")
    assert keepalive("postgresql://[") == {}


async def test_a_pools_connections_are_made_with_keepalives(pool):
    async with pool.connection() as connection:
        assert connection.info.get_parameters()["tcp_user_timeout"] == "10000"
        with socket.socket(fileno=os.dup(connection.fileno())) as twin:
            if twin.family != socket.AF_UNIX:
                assert twin.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 5


@pytest.mark.parametrize(
    ("text", "stored"),
    [(None, None), ("caf\u00e9", "caf\u00e9"), ("a\0b", "a\ufffdb"), ("caf\udce9", "caf?")],
)
def test_what_is_no_text_for_postgres_is_made_so(text, stored):
    assert storable(text) == stored


@pytest.mark.parametrize("in_between", [False, True], ids=["direct", "pooler"])
async def test_behind_a_pooler_no_statement_is_prepared_under_a_name(pool, monkeypatch, in_between):
    if in_between:  # which makes up the process that it names at its greeting
        monkeypatch.setattr(psycopg.ConnectionInfo, "backend_pid", property(lambda _: 0))
    async with pool.connection() as connection:
        for _ in range(6):
            await fetch_one(connection, _Q["clock"])
        cursor = await connection.execute("select count(*) from pg_prepared_statements", prepare=False)
        assert (await cursor.fetchone() == (0,)) is in_between
