"""Who leads does what needs doing once, and one task that fails keeps no other from running."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from pgmail.errors import PgmailError
from pgmail.maintain.leader import Leader
from pgmail.store.database import Database as Pool
from pgmail.store.presence import Presence
from tests.sql.kit import Hand, one, rows, send, state
from tests.waiting import eventually
from tests.worker.cable import cable_to


class Office:
    """A leader with its own presence."""

    def __init__(self, pool: Pool, silence_seconds: float = 2.0) -> None:
        self.presence = Presence(
            pool, program="maintain", concurrency=0, beat_ms=50, silence_seconds=silence_seconds
        )
        self.leader = Leader(pool, self.presence, silence_seconds=silence_seconds)

    async def start(self) -> "Office":
        await self.presence.start()
        await self.leader.start()
        return self

    async def stop(self) -> None:
        await self.leader.drain(5)
        await self.leader.stop()
        await self.presence.stop()


@pytest.fixture
async def office(pool) -> AsyncIterator[Office]:
    made = Office(pool)
    yield made
    await made.stop()


async def test_one_of_two_leads_and_the_other_takes_over(pool, db, office):
    await office.start()
    await eventually(lambda: office.leader.leading)
    second = await Office(pool).start()
    await office.stop()
    assert not office.leader.leading
    await eventually(lambda: second.leader.leading)
    await second.stop()


@pytest.mark.parametrize("silence", [0.5, 2.0])
async def test_a_silent_worker_is_rescued_after_its_silence_whatever_that_is(db, app, owner, pool, silence):
    """The shortest silence that may be set is shorter than the leader's usual pause."""
    hand = Hand(db.connect("worker"))
    mail = send(app)
    hand.claim()
    office = await Office(pool, silence).start()
    await eventually(lambda: state(app, mail) == "queued")
    assert rows(owner, "select epoch from pgmail.worker") == [(office.presence.epoch,)]
    assert one(owner, "select rescues from pgmail.queue") == 1
    await office.stop()


async def test_who_takes_over_from_a_dead_leader_has_counted_the_silence_already(db, app, pool):
    """Its lease ran out meanwhile; a grace after that would keep mail waiting for both."""
    dead = Hand(db.connect("worker"))
    mail = send(app)
    dead.claim()
    assert one(dead.connection, "select pgmail.lead_v1(%s, 5)", [dead.epoch])
    office = await Office(pool, silence_seconds=4.0).start()
    await eventually(lambda: office.leader.leading, 30)
    at = time.monotonic()
    await eventually(lambda: state(app, mail) == "queued", 30)
    assert time.monotonic() - at < 3.5  # less than a silence
    await office.stop()


async def test_scheduled_mail_wakes_its_idle_lane(app, owner, office, pool):
    send(app, scheduled_at=(datetime.now(UTC) + timedelta(seconds=1.2)).isoformat())
    one(owner, "select pgmail.fold_touches_v1()")
    owner.execute("update pgmail.lane set active = false")
    await office.start()
    await eventually(lambda: one(owner, "select active from pgmail.lane"))


async def test_a_lane_that_nobody_knows_of_is_repaired_and_tallies_are_folded(app, owner, office):
    send(app)
    owner.execute("delete from pgmail.lane_touch")
    await office.start()
    await eventually(lambda: rows(owner, "select active from pgmail.lane") == [(True,)])
    await eventually(lambda: one(owner, "select count(*) from pgmail.tally") == 0)
    assert rows(owner, "select kind, n from pgmail.tally_total") == [("enqueued", 1)]


async def test_partitions_that_are_missing_are_made(owner, office):
    weekly = rows(
        owner,
        "select inhrelid::regclass::text from pg_inherits "
        "where inhparent = 'pgmail.event'::regclass and inhrelid <> 'pgmail.event_default'::regclass",
    )
    for (name,) in weekly:
        owner.execute(f"drop table {name}")
    assert one(owner, "select days_left from pgmail.partition_state()") == 0
    await office.start()
    await eventually(lambda: one(owner, "select days_left from pgmail.partition_state()") > 14)


async def test_partitions_that_run_out_raise_an_alarm_and_are_looked_at_again_soon(
    office, monkeypatch, capsys
):
    monkeypatch.setattr("pgmail.maintain.leader.LOW_DAYS", 10_000)
    await office.start()
    said = []

    def alarmed() -> bool:
        said.append(capsys.readouterr().out)
        return "leader.partitions_low" in "".join(said)

    await eventually(alarmed)


@pytest.mark.parametrize("fault", [PgmailError("refused"), ZeroDivisionError("a bug")])
async def test_a_task_that_fails_keeps_no_other_from_running(app, owner, office, fault):
    ran = asyncio.Event()

    async def fails() -> None:
        raise fault

    async def runs() -> None:
        ran.set()

    office.leader._tasks = [("rescue", 0.0, fails), ("expire", 0.0, runs)]
    await office.start()
    await asyncio.wait_for(ran.wait(), 10)


async def test_with_the_database_away_it_leads_no_more_and_again_once_it_is_back(db):
    async with cable_to(db.dsn_for("worker")) as cable:
        pool = Pool(cable.dsn(db.dsn_for("worker")), name="test", wait_seconds=0.3)
        await pool.open()
        office = await Office(pool, 30.0).start()
        await eventually(lambda: office.leader.leading)
        cable.cut()
        await eventually(lambda: not office.leader.leading)
        cable.mend()
        await eventually(lambda: office.leader.leading)
        await office.stop()
        await pool.close()
