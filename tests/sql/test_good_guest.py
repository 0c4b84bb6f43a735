"""A good guest: a send in an application's transaction waits for nobody, holds nobody up, and does not fail for us."""

import asyncio
import random

import pytest
from psycopg import IsolationLevel
from psycopg.types.json import Jsonb

from tests.sql import kit
from tests.sql.kit import Hand

pytestmark = pytest.mark.one_server

_SEND = "select pgmail.send(%s)"


async def guest(db, **options):
    """A connection on which any wait is a failure."""
    connection = await db.aconnect("producer", autocommit=False, **options)
    await connection.execute("set lock_timeout = '20ms'")
    await connection.commit()
    return connection


async def test_two_transactions_to_the_same_new_domains_in_opposite_orders_neither_wait_nor_deadlock(
    db, owner
):
    first, second = await guest(db), await guest(db)
    for one, other in (("a.example", "b.example"), ("b.example", "a.example")):
        await first.execute(_SEND, [Jsonb(kit.body(f"x@{one}"))])
        await second.execute(_SEND, [Jsonb(kit.body(f"x@{other}"))])
    await first.commit()
    await second.commit()
    hand = Hand(db.connect("worker"))
    hand.fold()
    assert kit.rows(owner, "select site, active from pgmail.lane order by site") == [
        ("a.example", True),
        ("b.example", True),
    ]
    assert len(hand.claim()) == 4


@pytest.mark.parametrize("level", [IsolationLevel.SERIALIZABLE, IsolationLevel.REPEATABLE_READ])
async def test_strict_isolation_never_fails_because_of_us(db, owner, level):
    kit.stream(owner, "limited", max_queued=3)
    connections = [await guest(db) for _ in range(8)]
    for connection in connections:
        await connection.set_isolation_level(level)
    hand = Hand(db.connect("worker"))
    sent = 0
    for turn in range(4):
        for number, connection in enumerate(connections):
            stream = "limited" if number % 2 else "transactional"
            await connection.execute(_SEND, [Jsonb(kit.body(f"u{number}@example.org", stream=stream))])
            sent += 1
            work(hand, owner)  # in the middle of their transactions
        random.Random(turn).shuffle(connections)
        await asyncio.gather(*(connection.commit() for connection in connections))
    assert kit.count(owner, "recipient") == sent == 32
    work(hand, owner)
    assert kit.differences(owner) == [0]


def work(hand: Hand, owner: kit.Connection) -> None:
    """A bit of everything that a fleet does meanwhile."""
    hand.fold()
    leases = hand.claim(2)
    hand.settle(leases[:1])
    hand.release(leases[1:])
    owner.execute("update pgmail.lane set changed_at = changed_at - interval '1 minute'")
    hand.connection.execute("select pgmail.idle_lanes_v1(1, %s::bigint[])", [hand.lanes()])
    hand.connection.execute("select pgmail.fold_tallies_v1(), pgmail.repair_lanes_v1(), pgmail.expire_v1()")


async def test_a_transaction_left_open_after_a_send_delays_nobody(db, app, owner, hand):
    kit.send(app, "before@example.org")
    open_ = await guest(db)
    await open_.execute(_SEND, [Jsonb(kit.body("open@example.org", stream="broadcast", idempotency_key="k"))])
    hand.connection.execute("set lock_timeout = '20ms'")
    mine = kit.send(app, "after@example.org")
    hand.fold()
    leases = hand.claim()
    assert mine in [lease.message_id for lease in leases]
    assert set(hand.settle(leases)) == {"settled"}
    for task in ("repair_lanes", "expire", "fold_tallies", "purge_idempotency", "make_partitions"):
        hand.connection.execute(f"select pgmail.{task}_v1()")
    hand.connection.execute("select pgmail.wake_due_v1('-infinity')")
    hand.connection.execute("select pgmail.idle_lanes_v1(1, %s)", [hand.lanes()])
    await open_.commit()
    assert len(hand.claim()) == 1


def test_a_cancel_or_reschedule_left_open_holds_up_no_lane_and_no_other_mail(db, app, owner, hand):
    ids = [kit.send(app, f"u{n}@example.org") for n in range(4)]
    hand.fold()
    open_ = db.connect("producer", autocommit=False)
    open_.execute("select pgmail.cancel(%s)", [ids[0]])
    open_.execute("select pgmail.reschedule(%s, now() + interval '1 hour')", [ids[1]])
    operator = db.connect("admin", autocommit=False)
    operator.execute("select pgmail.retry(%s)", [ids[2]])
    hand.connection.execute("set lock_timeout = '20ms'")
    leases = hand.claim()
    assert {lease.message_id for lease in leases} == set(ids[2:])
    hand.release(leases[:1])
    hand.settle(leases[1:], "deferred", delay=0)
    kit.send(app, "new@example.org", stream="broadcast")
    assert hand.fold() == 2
    hand.connection.execute("select pgmail.repair_lanes_v1(), pgmail.wake_due_v1('-infinity')")
    open_.rollback()
    assert len(hand.claim()) == 5


def test_no_send_waits_for_a_running_fold_claim_settle_or_rescue(db, app):
    kit.send_many(app, [kit.body(f"u{n}@example.org") for n in range(6)])
    worker = Hand(db.connect("worker", autocommit=False))
    worker.connection.commit()
    worker.fold()
    leases = worker.claim()
    worker.settle(leases[:3])
    worker.release(leases[3:])
    worker.rescue()
    worker.connection.execute("select pgmail.fold_tallies_v1(), pgmail.repair_lanes_v1()")
    app.execute("set lock_timeout = '20ms'")
    assert kit.send(app, "new@example.org")
    assert len(kit.send_many(app, [kit.body(f"u{n}@example.org") for n in range(6)])) == 6
    worker.connection.rollback()


def test_a_send_with_a_timeout_of_its_own_locks_nothing_but_its_own_rows(db, app):
    with db.connect("producer", autocommit=False) as connection:
        kit.send(connection, cc=["b@example.net"])
        taken = kit.rows(
            connection,
            "select relation::regclass::text, mode from pg_locks where pid = pg_backend_pid() and relation is not null"
            " and mode not in ('AccessShareLock', 'RowExclusiveLock')",
        )
        assert taken == []
        connection.rollback()


def test_a_missing_worker_role_row_or_lane_never_makes_a_send_fail(app, owner):
    owner.execute("truncate pgmail.lane, pgmail.worker, pgmail.site_domain, pgmail.relay, pgmail.leader")
    assert kit.send(app)


@pytest.mark.parametrize("act", ["cancel(%s)", "reschedule(%s, now() + interval '1 hour')"])
@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_what_a_worker_took_after_the_snapshot_is_too_late_and_no_fault(db, app, hand, level, act):
    mail = kit.send(app)
    with db.connect("producer", autocommit=False) as connection:
        connection.execute(f"set transaction isolation level {level}")
        connection.execute("select * from pgmail.status(%s)", [mail])
        assert len(hand.claim()) == 1
        assert kit.one(connection, f"select pgmail.{act}", [mail])["status"] == "too_late"
        connection.commit()
