"""Claim, settle, release and rescue: a row is held by one worker at a time, and no result is lost."""

import contextlib
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.sql import kit
from tests.sql.kit import Hand
from tests.waiting import eventually_now

pytestmark = pytest.mark.one_server

_hour = timedelta(hours=1)


def test_a_claimed_row_is_sending_and_belongs_to_one_worker(app, hand, other):
    mail = kit.send(app)
    (lease,) = hand.claim()
    assert (lease.message_id, lease.claims, lease.attempts) == (mail, 1, 0)
    assert kit.state(app, mail) == "sending"
    assert other.claim() == []


def test_a_claim_takes_no_more_than_its_limit_and_the_oldest_first(db, app, hand):
    for n in range(6):
        kit.send(app, f"u{n}@example.org")
    first, rest = hand.claim(2), hand.claim(10)
    assert (len(first), len(rest)) == (2, 4)
    assert [x.id for x in first + rest] == sorted(x.id for x in first + rest)


def test_a_head_keeps_a_claim_from_earlier_rows(app, hand):
    for n in range(4):
        kit.send(app, f"u{n}@example.org")
    leases = hand.claim()
    hand.release(leases)
    again = hand.claim(head=(leases[1].due_at, leases[1].id))
    assert [x.id for x in again] == [x.id for x in leases[2:]]


async def test_two_claimers_never_get_the_same_row_nor_more_than_their_limit(db, app):
    kit.send_many(app, [kit.body(f"u{n}@example.org") for n in range(60)])
    lane = kit.one(db.connect(), "select distinct lane from pgmail.queue")
    first, second = Hand(db.connect("worker")), Hand(db.connect("worker", autocommit=False))
    second.connection.commit()  # so that the first can see it registered
    held = second.claim(25, lanes=[lane])  # in a transaction that stays open
    taken = []
    while batch := first.claim(10, lanes=[lane]):
        assert len(batch) <= 10
        taken += batch
    second.connection.commit()
    assert len(held) == 25
    assert len(taken) == 35
    assert not {x.id for x in held} & {x.id for x in taken}


def test_mail_for_later_is_not_claimed_before(app, hand, db_clock):
    mail = kit.send(app, scheduled_at=(db_clock.now() + _hour).isoformat())
    assert hand.claim() == []
    db_clock.advance(_hour)
    assert [x.message_id for x in hand.claim()] == [mail]


def test_a_worker_that_was_declared_dead_claims_nothing(app, hand, other):
    kit.send(app)
    other.rescue(hand.epoch)
    with pytest.raises(psycopg.Error) as refused:
        hand.claim()
    assert refused.value.sqlstate == "PM410"


async def test_a_rescue_waits_for_a_claim_that_is_on_its_way_so_no_lease_is_orphaned(db, app):
    kit.send(app)
    dying = Hand(db.connect("worker"))
    lanes = dying.lanes()
    dying.connection.autocommit = False
    assert len(dying.claim(lanes=lanes)) == 1  # not committed
    rescuer = await db.aconnect("worker")
    with pytest.raises(psycopg.errors.LockNotAvailable):
        await rescuer.execute("select pgmail.rescue_v1(%s)", [dying.epoch])
    dying.connection.commit()
    answer = await rescuer.execute("select pgmail.rescue_v1(%s)", [dying.epoch])
    assert await answer.fetchone() == (1,)


def test_a_worker_that_freezes_in_the_middle_of_a_claim_keeps_neither_the_rows_nor_the_rescuer(
    db, app, owner
):
    """As after SIGSTOP, or a host that went without a word: its transaction is open, and nobody will end it."""
    kit.send(app)
    frozen = Hand(db.connect("worker"))
    lanes = frozen.lanes()
    frozen.connection.autocommit = False
    assert len(frozen.claim(lanes=lanes)) == 1  # read, and not committed
    rescuer = db.connect("worker")

    def rescued():
        with contextlib.suppress(
            psycopg.errors.LockNotAvailable
        ):  # the leader has other things to do meanwhile
            return kit.one(rescuer, "select pgmail.rescue_v1(%s)", [frozen.epoch]) == 0

    eventually_now(rescued, 12)
    assert kit.one(owner, "select count(*) from pgmail.queue where leased_by is null") == 1
    with pytest.raises(psycopg.Error):
        frozen.connection.execute("select 1")


def test_a_beat_does_not_wait_for_a_claim_in_flight(db, app, hand):
    kit.send(app)
    lanes = hand.lanes()
    hand.connection.autocommit = False
    hand.claim(lanes=lanes)
    with db.connect("worker") as beating:
        beating.execute("set lock_timeout = '50ms'")
        assert kit.one(beating, "select pgmail.worker_beat_v1(%s, 'running', false)", [hand.epoch])
    hand.connection.rollback()


def test_a_final_result_leaves_the_queue_with_its_outcome(app, owner, hand):
    for kind in ("sent", "bounced", "expired", "suppressed"):
        mail = kit.send(app)
        assert hand.settle(hand.claim(), kind, code=250, reply="ok", remote_host="mx", relay="r") == [
            "settled"
        ]
        assert kit.state(app, mail) == kind
        assert kit.events(app, mail) == ["queued", "sending", kind]
        assert kit.count(owner, "queue") == 0
        row = kit.rows(app, "select attempts, code, reply from pgmail.status(%s)", [mail])
        assert row == [(1, 250, "ok")]


def test_a_deferral_waits_its_delay_and_spends_an_attempt(app, hand, db_clock):
    mail = kit.send(app)
    hand.settle(hand.claim(), "deferred", delay=90, code=451, reply="later")
    assert kit.state(app, mail) == "deferred"
    assert hand.claim() == []
    db_clock.advance(91)
    assert kit.state(app, mail) == "queued"
    (lease,) = hand.claim()
    assert (lease.claims, lease.attempts) == (2, 1)


def test_a_result_that_never_began_spends_no_attempt(app, hand, db_clock):
    kit.send(app)
    hand.settle(hand.claim(), "deferred", delay=1, began=False)
    db_clock.advance(2)
    assert hand.claim()[0].attempts == 0


def test_a_dead_letter_keeps_its_reason_its_error_and_its_expiry(db, app, hand):
    expiry = datetime.now(UTC).replace(microsecond=0) + timedelta(days=300)
    mail = kit.send(app, expires_at=expiry.isoformat())
    hand.settle(hand.claim(), "dead", reason="template", error="no name")
    assert kit.state(app, mail) == "dead"
    assert kit.rows(app, "select reason from pgmail.status(%s)", [mail]) == [("template: no name",)]
    assert kit.one(db.connect(), "select expires_at from pgmail.dead_letter") == expiry


def test_a_result_in_doubt_on_a_holding_stream_is_held_and_told_twice(app, hand):
    mail = kit.send(app)
    hand.settle(hand.claim(), "held", doubt=True, reason="the reply was lost", error="reset after the dot")
    assert kit.state(app, mail) == "held"
    assert sorted(kit.events(app, mail)[2:]) == ["held", "in_doubt"]
    assert kit.rows(app, "select reason from pgmail.status(%s)", [mail]) == [("the reply was lost",)]


def test_a_kind_that_settles_nothing_is_refused_and_loses_nothing(app, owner, hand):
    kit.send(app)
    leases = hand.claim()
    for kind in ("cancelled", "delayed", "nonsense", None):
        with pytest.raises(psycopg.errors.InvalidParameterValue):
            hand.settle(leases, kind)
    assert kit.count(owner, "queue") == 1


def test_settling_twice_counts_once_and_tells_once(db, app, hand):
    mail = kit.send(app)
    leases = hand.claim()
    assert hand.settle(leases, "sent", doubt=True) == ["settled"]
    assert hand.settle(leases, "sent", doubt=True) == ["fenced"]
    assert sorted(kit.events(app, mail)) == ["in_doubt", "queued", "sending", "sent"]
    assert kit.differences(db.connect()) == [0]


def test_a_fence_is_epoch_and_claim_number(app, hand, other):
    mail = kit.send(app)
    (stale,) = hand.claim()
    hand.release([stale])
    (fresh,) = hand.claim()
    assert (stale.claims, fresh.claims) == (1, 2)
    assert hand.settle(stale, "bounced") == ["fenced"]
    assert other.settle(fresh, "bounced") == ["fenced"]
    assert kit.state(app, mail) == "sending"
    assert hand.settle(fresh, "bounced") == ["settled"]


def test_a_fenced_out_250_settles_a_row_that_waits_and_saves_a_copy(db, app, hand, other):
    mail = kit.send(app)
    (lease,) = hand.claim()
    assert other.rescue(hand.epoch) == 1
    assert hand.settle(lease, "sent", code=250) == ["settled"]
    assert kit.state(app, mail) == "sent"
    assert other.claim() == []
    assert kit.differences(db.connect()) == [0]


def test_a_fenced_out_250_does_not_touch_the_lease_of_another(app, hand, other):
    mail = kit.send(app)
    (lease,) = hand.claim()
    other.rescue(hand.epoch)
    (taken,) = other.claim()
    assert hand.settle(lease, "sent", code=250) == ["fenced"]
    assert kit.state(app, mail) == "sending"
    details = kit.rows(app, "select detail from pgmail.trace(%s) where type = 'email.sent'", [mail])
    assert details == [("fenced out, its lease was lost",)]
    assert other.settle(taken, "sent") == ["settled"]


def test_a_fenced_out_refusal_is_recorded_as_an_event_alone(app, hand, other):
    mail = kit.send(app)
    (lease,) = hand.claim()
    other.rescue(hand.epoch)
    assert hand.settle(lease, "bounced", code=550, reply="no such user") == ["fenced"]
    assert kit.state(app, mail) == "queued"
    assert kit.events(app, mail)[-1] == "bounced"


def test_rows_that_another_transaction_holds_are_answered_locked_and_told_nothing(db, app, hand):
    kit.send_many(app, [kit.body(f"u{n}@example.org") for n in range(3)])
    leases = hand.claim()
    with db.connect(autocommit=False) as holder:
        holder.execute("select 1 from pgmail.queue where id = %s for update", [leases[1].id])
        answers = hand.settle(leases, "sent", doubt=True)
    assert answers == ["settled", "locked", "settled"]
    assert kit.events(app, leases[1].id) == ["queued", "sending"]
    assert hand.settle(leases[1], "sent", doubt=True) == ["settled"]
    assert sorted(kit.events(app, leases[1].id)) == ["in_doubt", "queued", "sending", "sent"]


def test_a_fenced_out_250_waits_for_a_cancel_that_may_roll_back(db, app, hand, other):
    mail = kit.send(app)
    (lease,) = hand.claim()
    other.rescue(hand.epoch)
    canceller = db.connect("producer", autocommit=False)
    canceller.execute("select pgmail.cancel(%s)", [mail])
    assert hand.settle(lease, "sent") == ["locked"]
    canceller.rollback()
    assert hand.settle(lease, "sent") == ["settled"]
    assert kit.state(app, mail) == "sent"


def test_settling_nothing_answers_nothing(hand):
    assert hand.settle_results([]) == []


def test_release_gives_back_untried_and_rewinds_the_lane(db, app, hand):
    mail = kit.send(app)
    hand.fold()
    owner = db.connect()
    owner.execute("update pgmail.lane set rewind_to = null")
    before = kit.one(owner, "select version from pgmail.lane")
    leases = hand.claim()
    assert hand.release(leases) == [leases[0].id]
    assert kit.state(app, mail) == "queued"
    assert kit.events(app, mail) == ["queued", "sending"]
    hand.fold()
    rewound, version = owner.execute("select rewind_to, version from pgmail.lane").fetchone()
    assert rewound == leases[0].due_at
    assert version > before
    assert hand.release(leases) == []


def test_release_with_a_reason_tells_a_delay_once_and_spends_no_attempt(app, hand):
    mail = kit.send(app)
    for _ in range(3):
        assert len(hand.release(hand.claim(traced=False), "relay away")) == 1
    assert kit.events(app, mail) == ["queued", "delayed"]
    assert hand.claim()[0].attempts == 0


def test_rescue_resends_in_doubt_on_a_resend_stream(app, hand, other):
    mail = kit.send(app)
    hand.claim()
    assert other.rescue(hand.epoch) == 1
    assert kit.state(app, mail) == "queued"
    assert kit.events(app, mail) == ["queued", "sending", "in_doubt"]
    (lease,) = other.claim()
    assert (lease.rescues, lease.attempts) == (1, 0)


def test_rescue_holds_in_doubt_on_a_hold_stream(db, app, hand, other):
    kit.stream(db.connect(), "careful", on_doubt="hold")
    mail = kit.send(app, stream="careful")
    (lease,) = hand.claim()
    assert other.rescue(hand.epoch) == 1
    assert kit.state(app, mail) == "held"
    assert sorted(kit.events(app, mail)[2:]) == ["held", "in_doubt"]
    assert other.claim() == []
    assert kit.one(db.connect(), "select held_due_at from pgmail.queue") == lease.due_at


def test_rescue_takes_only_the_dead_workers_leases_and_only_once(app, hand, other):
    kit.send_many(app, [kit.body(f"u{n}@example.org") for n in range(4)])
    hand.claim(1)
    kept = other.claim(1)
    assert other.rescue(hand.epoch) == 1
    assert other.rescue(hand.epoch) == 0
    assert other.settle(kept) == ["settled"]


def test_a_worker_that_stops_with_leases_is_rescued_and_one_without_just_goes(db, app, hand, other):
    kit.send(app)
    hand.claim()
    for one in (hand, other):
        one.connection.execute("select pgmail.worker_stop_v1(%s)", [one.epoch])
    owner = db.connect()
    assert kit.count(owner, "worker") == 0
    assert kit.one(owner, "select count(*) from pgmail.queue where leased_by is not null") == 0


def test_leases_of_a_worker_without_a_row_are_found_as_orphans(app, owner, hand, other):
    kit.send(app)
    hand.claim()
    assert kit.rows(other.connection, "select * from pgmail.orphans_v1()") == []
    owner.execute("delete from pgmail.worker where epoch = %s", [hand.epoch])
    assert kit.rows(other.connection, "select * from pgmail.orphans_v1()") == [(hand.epoch,)]
    assert other.rescue(hand.epoch) == 1


def test_every_claim_is_a_hot_update(db, app, hand):
    expiry = (datetime.now(UTC) + timedelta(days=300)).isoformat()
    app.execute(
        "select count(*) from pgmail.send_many(%s)",
        [Jsonb([kit.body(f"u{n}@example.org", expires_at=expiry) for n in range(2000)])],
    )
    lanes, taken = hand.lanes(), 0
    while batch := hand.claim(200, lanes=lanes, traced=False):
        taken += len(batch)
    hand.connection.execute("select pg_stat_force_next_flush()")
    updated, hot = (
        db.connect()
        .execute("select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables where relname = 'queue'")
        .fetchone()
    )
    assert (taken, updated, hot) == (2000, 2000, 2000)


def test_a_row_that_an_application_has_locked_does_not_stall_a_rescue_and_is_found_as_an_orphan(
    db, app, owner, hand, other
):
    kit.send(app)
    kit.send(app, "b@example.org")
    locked = hand.claim()[0].id
    application = db.connect(autocommit=False)
    application.execute("select from pgmail.queue where id = %s for update", [locked])
    assert other.rescue(hand.epoch) == 1
    assert [row[0] for row in kit.rows(owner, "select pgmail.orphans_v1()")] == [hand.epoch]
    application.rollback()
    assert other.rescue(hand.epoch) == 1
    assert kit.rows(owner, "select pgmail.orphans_v1()") == []
