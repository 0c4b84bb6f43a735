"""The leader drops what is past its time, a step at a time, and what is locked does not stop the rest."""

from datetime import timedelta

from pgmail.maintain.leader import Leader
from pgmail.maintain.retention import TABLES, Retention
from pgmail.store.presence import Presence
from tests.sql import kit
from tests.sql.kit import Hand
from tests.waiting import eventually


def old_weeks(owner):
    """Tables with a partition whose record has run out."""
    text = """select count(*) from pgmail.weekly_partitions(%s) where until < pgmail.now() - interval '91 days'"""
    return {base for base in TABLES if kit.one(owner, text, [base])}


def settle_one(app, db):
    hand = Hand(db.connect("worker"))
    kit.send(app)
    hand.settle(hand.claim())


async def round_(retention):
    steps = 1
    while await retention.step():
        steps += 1
    return steps


async def test_a_round_drops_all_that_is_past_its_time_and_the_next_finds_nothing(
    db_clock, app, owner, db, pool
):
    settle_one(app, db)
    db_clock.advance(timedelta(days=120))
    assert old_weeks(owner) == set(TABLES)
    retention = Retention(pool)
    assert await round_(retention) > 13
    assert old_weeks(owner) == set()
    assert await round_(retention) == 13
    assert kit.one(owner, "select difference from pgmail.ledger") == 0


async def test_a_table_that_somebody_reads_is_left_to_the_next_round(db_clock, app, owner, db, pool):
    settle_one(app, db)
    db_clock.advance(timedelta(days=120))
    retention = Retention(pool)
    with db.connect("reader", autocommit=False) as reading:
        reading.execute("select count(*) from pgmail.recipient")
        await round_(retention)
        assert old_weeks(owner) == {"recipient", "outcome", "event"}
        reading.rollback()
    await round_(retention)
    assert old_weeks(owner) == set()


async def test_the_leader_does_it(db_clock, app, owner, db, pool):
    settle_one(app, db)
    db_clock.advance(timedelta(days=120))
    presence = Presence(pool, program="maintain", concurrency=0, beat_ms=50, silence_seconds=2.0)
    leader = Leader(pool, presence, silence_seconds=0.5)
    await presence.start()
    await leader.start()
    await eventually(lambda: not old_weeks(owner))
    await leader.drain(5)
    await leader.stop()
    await presence.stop()
