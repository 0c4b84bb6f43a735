"""cancel, reschedule, retry, discard: on mail in every state, and without ever waiting."""

from datetime import timedelta

import psycopg
import pytest

from tests.sql import kit
from tests.sql.kit import Refusal

pytestmark = pytest.mark.one_server

_LATER = "now() + interval '1 hour'"


@pytest.fixture
def stand(db_clock, app, owner, hand):
    """Puts an email into a state; returns its id."""

    def put(state, **more):
        later = {"scheduled_at": (db_clock.now() + timedelta(hours=2)).isoformat()}
        mail = kit.send(app, **(later if state == "scheduled" else {}), **more)
        if state in {"scheduled", "queued"}:
            return mail
        leases = [lease for lease in hand.claim() if lease.message_id == mail]
        if state == "deferred":
            hand.settle(leases, state, delay=600)
        elif state != "sending":
            hand.settle(leases, state, reason="because")
        assert kit.state(app, mail) == state
        return mail

    return put


def cancel(connection, mail):
    said = kit.one(connection, "select pgmail.cancel(%s, 'changed my mind')", [mail])
    return said["status"], said["cancelled"], said["too_late"]


def reschedule(connection, mail, at=_LATER):
    said = kit.one(connection, f"select pgmail.reschedule(%s, {at})", [mail])
    return said["status"], said["rescheduled"], said["too_late"]


def test_a_reason_for_a_cancel_has_a_bound(app):
    mail = kit.send(app)
    with pytest.raises(psycopg.Error) as error:
        app.execute("select pgmail.cancel(%s, %s)", [mail, "x" * 1001])
    assert error.value.diag.constraint_name == "invalid_reason"
    app.execute("select pgmail.cancel(%s, %s)", [mail, "x" * 1000])


@pytest.mark.parametrize("state", ["scheduled", "queued", "deferred", "held"])
def test_mail_that_waits_can_be_cancelled_and_cancelling_twice_is_fine(app, owner, hand, stand, state):
    mail = stand(state)
    assert cancel(app, mail) == ("cancelled", 1, 0)
    assert cancel(app, mail) == ("cancelled", 1, 0)
    assert kit.state(app, mail) == "cancelled"
    assert kit.events(app, mail)[-1] == "cancelled"
    assert kit.events(app, mail).count("cancelled") == 1
    assert hand.claim() == []
    assert kit.differences(owner) == [0]


@pytest.mark.parametrize("state", ["sending", "sent", "bounced", "dead"])
def test_mail_that_is_on_its_way_or_settled_is_too_late_to_cancel_or_reschedule(app, owner, stand, state):
    mail = stand(state)
    app.execute("set lock_timeout = '50ms'")
    assert cancel(app, mail) == ("too_late", 0, 1)
    assert reschedule(app, mail) == ("too_late", 0, 1)
    assert kit.state(app, mail) == state
    assert kit.differences(owner) == [0]


def test_cancelling_an_email_of_many_says_what_it_reached_in_time(app, hand, owner):
    mail = kit.send(app, ["a@example.org", "b@example.org", "c@example.org"])
    hand.claim(1)
    assert cancel(app, mail) == ("partly_cancelled", 2, 1)
    assert kit.states(app, mail) == ["sending", "cancelled", "cancelled"]
    assert kit.differences(owner) == [0]


def test_one_recipient_of_many_can_be_cancelled(app):
    mail = kit.send(app, ["a@example.org", "b@example.org"])
    assert cancel(app, kit.recipients(app, mail)[1]) == ("cancelled", 1, 0)
    assert kit.states(app, mail) == ["queued", "cancelled"]


def test_a_cancel_that_races_with_a_claim_in_an_open_transaction_never_waits(db, app, hand):
    mail = kit.send(app)
    lanes = hand.lanes()
    hand.connection.autocommit = False
    assert len(hand.claim(lanes=lanes)) == 1
    app.execute("set lock_timeout = '20ms'")
    assert cancel(app, mail) == ("too_late", 0, 1)
    assert reschedule(app, mail) == ("too_late", 0, 1)
    hand.connection.rollback()
    assert cancel(app, mail) == ("cancelled", 1, 0)


def test_a_claim_that_races_with_a_cancel_in_an_open_transaction_never_waits(db, app, hand):
    mail, other = kit.send(app), kit.send(app, "b@example.org")
    with db.connect("producer", autocommit=False) as canceller:
        cancel(canceller, mail)
        hand.connection.execute("set lock_timeout = '20ms'")
        assert [lease.message_id for lease in hand.claim()] == [other]
        canceller.rollback()
    assert [lease.message_id for lease in hand.claim()] == [mail]


@pytest.mark.parametrize("state", ["scheduled", "queued", "deferred"])
def test_mail_that_waits_can_be_rescheduled(db_clock, app, hand, stand, state):
    mail = stand(state)
    assert reschedule(app, mail) == ("rescheduled", 1, 0)
    assert kit.state(app, mail) == "scheduled"
    assert kit.events(app, mail)[-1] == "scheduled"
    assert hand.claim() == []
    db_clock.advance(timedelta(minutes=61))
    assert [lease.message_id for lease in hand.claim()] == [mail]


def test_rescheduling_to_now_queues_and_rewinds_the_lane(db_clock, app, owner, hand, stand):
    mail = stand("scheduled")
    hand.fold()
    owner.execute("update pgmail.lane set active = false, rewind_to = null")
    assert reschedule(app, mail, "now() - interval '30 seconds'") == ("rescheduled", 1, 0)
    assert (kit.state(app, mail), kit.events(app, mail)[-1]) == ("queued", "queued")
    hand.fold()
    assert kit.rows(owner, "select active, rewind_to <= pgmail.now() from pgmail.lane") == [(True, True)]
    assert len(hand.claim()) == 1


@pytest.mark.parametrize(
    ("at", "code"),
    [
        ("null", "invalid_time"),
        ("'infinity'", "invalid_time"),
        ("now() - interval '61 seconds'", "time_in_past"),
        ("now() + interval '367 days'", "time_too_far"),
        ("now() + interval '3 days'", "time_too_far"),  # after it expires
    ],
)
def test_a_moment_that_cannot_be_is_refused(app, stand, db_clock, at, code):
    mail = stand("scheduled", expires_at=(db_clock.now() + timedelta(days=2)).isoformat())
    with pytest.raises(psycopg.Error) as refused:
        reschedule(app, mail, at)
    assert kit.refusal(refused.value) == Refusal(code, "/scheduled_at", "PM422")
    assert kit.state(app, mail) == "scheduled"


def test_held_mail_is_not_rescheduled_but_waits_for_a_person(app, stand):
    mail = stand("held")
    assert reschedule(app, mail) == ("too_late", 0, 1)


@pytest.mark.parametrize("state", ["deferred", "held", "dead"])
def test_retry_puts_mail_back_at_once_and_keeps_the_ledger_exact(app, admin, hand, stand, state):
    mail = stand(state)
    assert kit.one(admin, "select pgmail.retry(%s, 'fixed')", [mail]) == 1
    assert kit.state(app, mail) == "queued"
    assert kit.events(app, mail)[-1] == "queued"
    assert kit.differences(admin) == [0]
    hand.fold()
    assert kit.one(admin, "select bool_and(active and rewind_to <= pgmail.now()) from pgmail.lane")
    hand.settle(hand.claim())
    assert kit.state(app, mail) == "sent"
    assert kit.differences(admin) == [0]


def test_a_retry_of_deferred_mail_that_is_held_tries_at_once_and_of_scheduled_mail_keeps_its_time(
    app, admin, hand, db_clock
):
    deferred = kit.send(app)
    hand.settle(hand.claim(), "deferred", delay=14400)
    scheduled = kit.send(app, scheduled_at=(db_clock.now() + timedelta(hours=2)).isoformat())
    for mail, state in ((deferred, "queued"), (scheduled, "scheduled")):
        kit.one(admin, "select pgmail.hold(%s)", [mail])
        assert kit.one(admin, "select pgmail.retry(%s)", [mail]) == 1
        assert kit.state(app, mail) == state


@pytest.mark.parametrize("state", ["scheduled", "queued", "sending", "sent", "bounced"])
def test_retry_and_discard_leave_other_mail_alone(app, admin, owner, stand, state):
    mail = stand(state)
    assert kit.one(admin, "select pgmail.retry(%s)", [mail]) == 0
    assert kit.one(admin, "select pgmail.discard(%s)", [mail]) == 0
    assert kit.state(app, mail) == state
    assert kit.count(owner, "audit") == 0


def test_a_dead_letter_that_is_discarded_ends_as_cancelled_with_who_and_why(app, admin, owner, stand):
    mail = stand("dead")
    assert kit.one(admin, "select pgmail.discard(%s, 'not wanted')", [mail]) == 1
    assert kit.one(admin, "select pgmail.discard(%s, 'not wanted')", [mail]) == 0
    reason = kit.one(app, "select reason from pgmail.status(%s)", [mail])
    assert (kit.state(app, mail), reason) == ("cancelled", "discarded by pgmail_admin: not wanted")
    assert kit.rows(owner, "select actor, action, reason from pgmail.audit") == [
        ("pgmail_admin", "email.discard", "not wanted")
    ]
    assert kit.differences(owner) == [0]


def test_mail_past_its_expiry_ends_as_expired_unless_it_is_held_or_being_sent(
    db_clock, app, owner, hand, stand
):
    soon = (db_clock.now() + timedelta(hours=1)).isoformat()
    sending, held = stand("sending", expires_at=soon), stand("held", expires_at=soon)
    deferred, queued = stand("deferred", expires_at=soon), stand("queued", expires_at=soon)
    db_clock.advance(timedelta(minutes=61))
    assert kit.one(hand.connection, "select pgmail.expire_v1()") == 2
    found = [kit.state(app, mail) for mail in (sending, held, deferred, queued)]
    assert found == ["sending", "held", "expired", "expired"]
    assert kit.differences(owner) == [0]


@pytest.mark.parametrize("call", ["cancel(%s)", f"reschedule(%s, {_LATER})", "retry(%s)", "discard(%s)"])
def test_an_unknown_id_is_not_found(admin, call):
    with pytest.raises(psycopg.Error) as refused:
        admin.execute(f"select pgmail.{call}", ["01999999-9999-7999-8999-999999999999"])
    assert kit.refusal(refused.value) == Refusal("not_found", "/id", "PM404")
