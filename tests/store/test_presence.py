"""A process among others: its row, its beat, its goodbye."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from pgmail.store import presence as module
from pgmail.store.database import Database as Pool
from pgmail.store.faults import FencedOut
from pgmail.store.presence import Presence, beats, lead
from tests.sql.kit import one, rows, send, state
from tests.waiting import eventually
from tests.worker.cable import cable_to


@pytest.fixture
def owner(db):
    return db.connect()


@pytest.fixture
async def pool(db) -> AsyncIterator[Pool]:
    made = Pool(db.dsn_for("worker"), name="test", wait_seconds=0.5)
    await made.open()
    yield made
    await made.close()


def made(pool: Pool, **changes) -> Presence:
    options = {"program": "worker", "concurrency": 7, "beat_ms": 20, "silence_seconds": 1.0}
    return Presence(pool, **options | changes)


async def test_it_registers_beats_and_says_goodbye(pool, owner):
    presence = made(pool)
    await presence.start()
    assert rows(owner, "select epoch, program, concurrency, state from pgmail.worker") == [
        (presence.epoch, "worker", 7, "running")
    ]
    await eventually(lambda: one(owner, "select beat from pgmail.worker") >= 3)
    assert presence.fresh
    presence.leaving()
    await eventually(lambda: one(owner, "select state from pgmail.worker") == "draining")
    assert await presence.drain(1)
    await presence.stop()
    await presence.stop()
    assert rows(owner, "select * from pgmail.worker") == []


async def test_asking_to_be_woken_is_known_to_the_database_when_it_returns(pool, owner):
    presence = made(pool, beat_ms=60_000, silence_seconds=600)
    await presence.start()
    await presence.set_asleep(True)
    assert one(owner, "select asleep from pgmail.worker")
    beat = one(owner, "select beat from pgmail.worker")
    await presence.set_asleep(True)  # it knew
    assert one(owner, "select beat from pgmail.worker") == beat
    await presence.set_asleep(False)
    assert not one(owner, "select asleep from pgmail.worker")
    await presence.stop()


async def test_one_that_was_declared_dead_hears_it_at_its_next_beat(pool, owner):
    presence = made(pool)
    await presence.start()
    one(owner, "select pgmail.rescue_v1(%s)", [presence.epoch])
    with pytest.raises(FencedOut, match=f"worker {presence.epoch} was declared dead"):
        await asyncio.wait_for(presence.ended(), 5)
    await presence.stop()


async def test_one_that_cannot_beat_is_not_fresh_and_is_again_once_it_can(db, owner, monkeypatch):
    class Clock:
        now = 100.0

        def monotonic(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    async with cable_to(db.dsn_for("worker")) as cable:
        pool = Pool(cable.dsn(db.dsn_for("worker")), name="test", wait_seconds=0.3)
        await pool.open()
        presence = made(pool)
        await presence.start()
        cable.cut()
        await eventually(lambda: cable.refused)
        assert presence.fresh
        clock.now += 0.6
        assert not presence.fresh
        cable.mend()
        await eventually(lambda: presence.fresh)
        await presence.stop()
        await pool.close()


async def test_it_waits_for_a_database_that_is_away_at_its_start(db, owner):
    async with cable_to(db.dsn_for("worker")) as cable:
        cable.cut()
        pool = Pool(cable.dsn(db.dsn_for("worker")), name="test", wait_seconds=0.1)
        await pool.open()
        presence = made(pool)
        starting = asyncio.create_task(presence.start())
        await eventually(lambda: cable.refused >= 2)
        assert not starting.done()
        cable.mend()
        await asyncio.wait_for(starting, 10)
        assert presence.epoch
        await presence.stop()
        await pool.close()


async def test_a_goodbye_that_cannot_be_said_is_no_reason_to_hang_or_crash(db, owner):
    async with cable_to(db.dsn_for("worker")) as cable:
        pool = Pool(cable.dsn(db.dsn_for("worker")), name="test", wait_seconds=0.1)
        await pool.open()
        presence = made(pool)
        await presence.start()
        cable.cut()
        await asyncio.wait_for(presence.stop(), 5)
        await pool.close()
    assert len(rows(owner, "select * from pgmail.worker")) == 1  # the rescuer's


async def test_a_goodbye_waits_a_moment_only_for_a_row_that_somebody_has_locked(db, pool, owner, monkeypatch):
    monkeypatch.setattr(module, "GOODBYE_SECONDS", 0.1)
    presence = made(pool)
    await presence.start()
    mail = send(db.connect("producer"))
    owner.execute("update pgmail.queue set leased_by = %s, claims = 1", [presence.epoch])
    with db.connect(autocommit=False) as holder:
        holder.execute("select from pgmail.queue for update")
        await asyncio.wait_for(presence.stop(), 5)
        holder.rollback()
    assert state(db.connect("producer"), mail) in {"sending", "queued"}


async def test_the_lead_is_one_processes_until_it_lapses(pool, owner):
    first, second = made(pool), made(pool)
    await first.start()
    await second.start()
    assert await lead(pool, first.epoch, 60)
    assert not await lead(pool, second.epoch, 60)
    assert await lead(pool, first.epoch, 60)
    assert set(await beats(pool)) == {first.epoch, second.epoch}
    await first.stop()  # the goodbye gives the lead up
    assert await lead(pool, second.epoch, 60)
    await second.stop()
