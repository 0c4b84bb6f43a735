"""Lanes: folded from touches, idle only when empty, woken by the clock, repaired when lost."""

from datetime import timedelta

import psycopg
import pytest

from tests.sql import kit

pytestmark = pytest.mark.one_server

_LANE = "select active, rewind_to, version from pgmail.lane"


def test_a_send_to_an_active_lane_touches_nothing(app, owner, hand):
    kit.send(app)
    assert kit.count(owner, "lane_touch") == 1
    assert hand.fold() == 1
    kit.send(app)
    assert kit.count(owner, "lane_touch") == 0


def test_folding_makes_a_lane_of_many_touches_and_rewinds_to_the_earliest(db, app, owner, hand):
    for _ in range(5):
        kit.send(app)
    first = kit.one(owner, "select min(due_at) from pgmail.queue")
    assert hand.fold() == 1
    assert hand.fold() == 0
    assert owner.execute(_LANE).fetchone()[:2] == (True, first)


def test_folding_wakes_an_idle_lane_under_a_new_version(app, owner, hand):
    kit.send(app)
    hand.fold()
    owner.execute(
        "update pgmail.lane set active = false, rewind_to = null, changed_at = changed_at - interval '1 hour'"
    )
    before = kit.one(owner, "select version from pgmail.lane")
    kit.send(app)
    hand.fold()
    active, rewound, version = owner.execute(_LANE).fetchone()
    assert active
    assert rewound
    assert version > before


def test_two_folding_at_once_share_the_touches_and_lose_none(db, app, owner, hand):
    kit.send(app, "a@one.example")
    with db.connect("worker", autocommit=False) as first:
        assert kit.one(first, "select pgmail.fold_touches_v1()") == 1
        kit.send(app, "a@two.example")
        hand.connection.execute("set lock_timeout = '20ms'")
        assert hand.fold() == 1
        first.rollback()
    assert hand.fold() == 1
    assert kit.rows(owner, "select site from pgmail.lane order by 1") == [("one.example",), ("two.example",)]


def test_a_lane_goes_idle_only_when_empty_and_after_a_quiet_time(db_clock, app, owner, hand):
    kit.send(app)
    hand.fold()
    lanes = hand.lanes()

    def idle():
        return kit.one(hand.connection, "select pgmail.idle_lanes_v1(1, %s)", [lanes])

    db_clock.advance(60)
    assert idle() == 0  # it holds mail
    (lease,) = hand.claim()
    assert idle() == 0  # it is being sent
    hand.settle(lease, "deferred", delay=3)
    assert idle() == 0  # due in a moment
    owner.execute("select pgmail.cancel(%s)", [lease.message_id])
    owner.execute("update pgmail.lane set changed_at = pgmail.now()")
    assert idle() == 0  # not quiet yet
    db_clock.advance(31)
    assert idle() == 1
    assert idle() == 0
    assert owner.execute(_LANE).fetchone()[:2] == (False, None)


def test_a_lane_with_mail_for_later_idles_and_is_woken_when_that_comes_due(db_clock, app, owner, hand):
    kit.send(app, scheduled_at=(db_clock.now() + timedelta(hours=1)).isoformat())
    hand.fold()
    db_clock.advance(60)
    assert kit.one(hand.connection, "select pgmail.idle_lanes_v1(1, %s)", [hand.lanes()]) == 1
    wake = "select pgmail.wake_due_v1('-infinity')"
    assert kit.one(hand.connection, wake) == 0
    db_clock.advance(timedelta(minutes=59))
    before = kit.one(owner, "select version from pgmail.lane")
    assert kit.one(hand.connection, wake) == 1
    assert kit.one(hand.connection, wake) == 0
    assert kit.one(owner, "select version from pgmail.lane where active") > before


def test_a_deferred_mail_wakes_its_lane_too(db_clock, app, hand):
    kit.send(app)
    hand.fold()
    hand.settle(hand.claim(), "deferred", delay=600)
    db_clock.advance(60)
    assert kit.one(hand.connection, "select pgmail.idle_lanes_v1(1, %s)", [hand.lanes()]) == 1
    db_clock.advance(545)
    assert kit.one(hand.connection, "select pgmail.wake_due_v1('-infinity')") == 1


def test_repair_finds_a_lane_that_was_lost_and_one_that_is_idle_with_due_mail(app, owner, hand):
    kit.send(app, "a@lost.example")
    kit.send(app, "a@idle.example")
    kit.send(app, "a@fine.example", priority="high")
    hand.fold()
    owner.execute("delete from pgmail.lane where site = 'lost.example'")
    owner.execute("update pgmail.lane set active = false where site = 'idle.example'")
    assert kit.one(hand.connection, "select pgmail.repair_lanes_v1()") == 2
    assert kit.one(hand.connection, "select pgmail.repair_lanes_v1()") == 0
    found = kit.rows(owner, "select site, stream, priority, active from pgmail.lane order by site")
    assert found == [
        ("fine.example", "transactional", 1, True),
        ("idle.example", "transactional", 2, True),
        ("lost.example", "transactional", 2, True),
    ]


def test_repair_walks_over_nothing_that_active_lanes_sent(db, app, owner, hand):
    """While a snapshot is held open the rows of what was sent stay in the index, a million in some minutes."""
    kit.send(app, "a@busy.example")
    hand.fold()
    with db.connect(autocommit=False) as holder:
        holder.execute("set transaction isolation level repeatable read")
        holder.execute("select from pgmail.queue")
        owner.execute(
            "insert into pgmail.queue (tenant_id, id, message_id, lane, due_at)"
            " select 1, pgmail.uuid7(), message_id, lane, due_at - interval '1 second'"
            " from pgmail.queue, generate_series(1, 3000)"
        )
        owner.execute("delete from pgmail.queue where due_at < (select max(due_at) from pgmail.queue)")
        owner.execute("analyze pgmail.queue")
        heads, repair = (
            [kit.one(owner, f"explain (analyze, buffers, format json) select {what}") for _ in range(2)][1]
            for what in ("* from pgmail.lanes_present()", "pgmail.repair_lanes_v1()")
        )  # the second time, when the catalog was read
    assert repair[0]["Plan"]["Shared Hit Blocks"] * 3 < heads[0]["Plan"]["Shared Hit Blocks"]


def test_what_waits_behind_a_head_is_told_up_to_the_head_and_only_what_is_free(app, owner, hand):
    for _ in range(4):
        kit.send(app)
    hand.fold()
    (lane, first), *_, (_, last) = kit.rows(owner, "select lane, due_at from pgmail.queue order by due_at")
    ask = (
        "select * from pgmail.late_v1(1, %s, %s::timestamptz[], %s::timestamptz[],"
        " array['00000000-0000-0000-0000-000000000000'::uuid], %s)"
    )

    def late(since, due, most=100):
        return kit.rows(hand.connection, ask, [[lane], [since], [due], most])

    assert late(first, last) == [(lane, first, 3)]  # the last is beyond the head
    assert late(first, last, 2) == [(lane, first, 2)]
    assert late(last, last) == []
    hand.claim(2, lanes=[lane])
    assert [n for *_, n in late(first, last)] == [1]


def test_repair_leaves_lanes_alone_whose_mail_is_held_or_for_later(db_clock, app, owner, hand):
    kit.stream(owner, "full", max_queued=0)
    kit.send(app, stream="full", on_limit="hold")
    kit.send(app, scheduled_at=(db_clock.now() + timedelta(hours=1)).isoformat())
    assert kit.one(hand.connection, "select pgmail.repair_lanes_v1()") == 0


def test_a_lanes_id_is_computed_alike_in_queue_touch_lane_and_dead_letter(app, owner, hand):
    kit.stream(owner, "news", priority=3)
    kit.send(app, ["a@gmail.com", "b@googlemail.com", "c@bücher.example"], stream="news")
    kit.send(app, "d@example.org", priority="high")
    hand.fold()
    hand.settle(hand.claim(1), "dead", stream="news", priority=3, site="gmail.com", reason="poison")
    computed = "pgmail.lane_id(tenant_id, stream, priority, site)"
    assert kit.one(owner, f"select bool_and(id = {computed}) from pgmail.lane")
    assert kit.one(
        owner,
        "select bool_and(q.lane = pgmail.lane_id(q.tenant_id, m.stream, m.priority, r.site)) from pgmail.queue q"
        " join pgmail.message m on m.id = q.message_id join pgmail.recipient r on r.id = q.id",
    )
    assert kit.rows(owner, "select site from pgmail.lane order by 1") == [
        ("example.org",),
        ("gmail.com",),
        ("xn--bcher-kva.example",),
    ]
    # The same on every server and version, since nothing stores it but the rows themselves.
    assert (
        kit.one(owner, "select pgmail.lane_id(1, 'transactional', 2, 'example.org')") == -1038160853403319022
    )


def test_a_worker_may_wake_but_only_the_functions_write_lanes(hand):
    try:
        hand.connection.execute("update pgmail.lane set active = true")
    except psycopg.errors.InsufficientPrivilege:
        return
    raise AssertionError("a worker wrote a lane by itself")
