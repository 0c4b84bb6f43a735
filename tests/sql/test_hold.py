"""hold and release: in time or not, told truthfully, and the old due time is kept; and everything at once."""

import random
import threading
import time
from collections import Counter
from datetime import timedelta

import psycopg
import pytest
from psycopg import errors

from tests.sql import kit
from tests.sql.kit import Hand, Refusal


def hold(connection, mail, reason="the text is wrong"):
    said = kit.one(connection, "select pgmail.hold(%s, %s)", [mail, reason])
    return said["status"], said["held"], said["too_late"]


def release(connection, mail):
    said = kit.one(connection, "select pgmail.release(%s, 'it is right')", [mail])
    assert not said["busy"]
    return said["status"], said["released"], said["not_held"], said["in_doubt"]


def test_held_mail_is_not_claimed_says_why_and_goes_after_its_release(admin, app, owner, hand):
    mail = kit.send(app)
    assert hold(admin, mail) == ("held", 1, 0)
    assert hold(admin, mail, "again") == ("held", 1, 0)
    assert kit.state(app, mail) == "held"
    assert "is held: by pgmail_admin: the text is wrong. pgmail.release(id) sends it" in kit.one(
        app, "select pgmail.why(%s)", [mail]
    )
    assert hand.claim() == []
    assert release(admin, mail) == ("released", 1, 0, 0)
    assert kit.state(app, mail) == "queued"
    hand.settle(hand.claim())
    assert kit.events(app, mail) == ["queued", "held", "queued", "sending", "sent"]
    acts = kit.rows(owner, "select actor, action, object, reason from pgmail.audit order by id")
    assert [act for act in acts if act[1].startswith("email.")] == [
        ("pgmail_admin", "email.hold", str(mail), "the text is wrong"),
        ("pgmail_admin", "email.release", str(mail), "it is right"),
    ]


def test_a_released_lane_that_went_idle_wakes(admin, app, hand, owner):
    mail = kit.send(app)
    hold(admin, mail)
    hand.fold()
    owner.execute("update pgmail.lane set active = false, rewind_to = null")
    release(admin, mail)
    assert hand.fold() == 1
    assert kit.rows(owner, "select active, rewind_to is not null from pgmail.lane") == [(True, True)]


def test_what_was_scheduled_or_deferred_keeps_its_time(admin, app, hand, owner, db_clock):
    at = (db_clock.now() + timedelta(hours=2)).isoformat()
    scheduled, deferred = kit.send(app, scheduled_at=at), kit.send(app)
    hand.settle(hand.claim(), "deferred", delay=3600)
    due = "select due_at from pgmail.status(%s)"
    before = [kit.one(app, due, [mail]) for mail in (scheduled, deferred)]
    for mail in (scheduled, deferred):
        assert hold(admin, mail) == ("held", 1, 0)
        assert kit.one(app, due, [mail]) is None
        assert release(admin, mail) == ("released", 1, 0, 0)
    assert [kit.state(app, mail) for mail in (scheduled, deferred)] == ["scheduled", "deferred"]
    assert [kit.one(app, due, [mail]) for mail in (scheduled, deferred)] == before


def test_held_mail_does_not_expire_until_it_is_released(admin, app, hand, db_clock):
    mail = kit.send(app, expires_at=(db_clock.now() + timedelta(hours=1)).isoformat())
    hold(admin, mail)
    db_clock.advance(timedelta(hours=2))
    expire = "select pgmail.expire_v1()"
    assert kit.one(hand.connection, expire) == 0
    assert release(admin, mail) == ("released", 1, 0, 0)
    assert kit.one(hand.connection, expire) == 1
    assert kit.state(app, mail) == "expired"


def test_a_lease_and_a_locked_row_are_too_late_at_once(db, admin, app, hand):
    leased, locked = kit.send(app), kit.send(app, "b@example.org")
    (lease,) = [lease for lease in hand.claim() if lease.message_id == leased]
    assert hold(admin, leased) == ("too_late", 0, 1)
    hand.release([lease])
    with db.connect(autocommit=False) as application:
        application.execute("select pgmail.cancel(%s)", [locked])
        began = time.monotonic()
        assert hold(admin, locked) == ("too_late", 0, 1)
        assert time.monotonic() - began < 5
        application.rollback()
    assert release(admin, leased) == ("not_held", 0, 1, 0)


def test_what_another_transaction_has_is_busy_and_not_told_as_released(db, admin, app):
    mail = kit.send(app)
    assert hold(admin, mail) == ("held", 1, 0)
    with db.connect(autocommit=False) as application:
        application.execute("select pgmail.cancel(%s)", [mail])
        said = kit.one(admin, "select pgmail.release(%s)", [mail])
        assert said == {"status": "busy", "released": 0, "busy": 1, "not_held": 0, "in_doubt": 0}
        application.rollback()
    assert release(admin, mail) == ("released", 1, 0, 0)


def test_of_an_email_to_many_each_is_held_by_itself(admin, app, hand):
    mail = kit.send(app, ["a@example.org", "b@example.org", "c@example.org"])
    (lease,) = hand.claim(1)
    assert hold(admin, mail) == ("partly_held", 2, 1)
    hand.settle(lease)
    assert sorted(kit.states(app, mail)) == ["held", "held", "sent"]
    assert release(admin, mail) == ("partly_released", 2, 1, 0)


def test_what_is_in_doubt_is_not_released_but_the_rest_is(admin, app, owner, hand, other):
    kit.stream(owner, "careful", on_doubt="hold")
    mail = kit.send(app, ["a@example.org", "b@example.org"], stream="careful")
    hand.claim(1)
    other.rescue(hand.epoch)
    hold(admin, mail)
    assert kit.states(app, mail) == ["held", "held"]
    assert release(admin, mail) == ("partly_released", 1, 0, 1)
    with pytest.raises(psycopg.Error) as caught:
        release(admin, mail)
    assert kit.refusal(caught.value) == Refusal("in_doubt", "/id", "PM409")
    assert "then resolve it" in str(caught.value)
    assert sorted(kit.states(app, mail)) == ["held", "queued"]


def test_a_stranger_may_not_hold(app):
    mail = kit.send(app)
    for act in (hold, release):
        with pytest.raises(errors.InsufficientPrivilege):
            act(app, mail)


class Crowd:
    """Everybody who may move mail, at once, until the mail is gone or time is over."""

    def __init__(self, db, mails):
        self.db, self.mails = db, mails
        self.said = Counter()
        self.cancelled, self.sent, self.faults = set(), [], []
        self.over = threading.Event()
        self.shares = [mails[::2], mails[1::2]]

    def run(self, seconds):
        acts = [
            self.work,
            self.work,
            self.cancel,
            self.cancel,
            self.reschedule,
            self.stop,
            self.stop,
            self.expire,
        ]
        threads = [threading.Thread(target=self._guard, args=(act, n)) for n, act in enumerate(acts)]
        for thread in threads:
            thread.start()
        until = time.monotonic() + seconds
        owner = self.db.connect()
        while time.monotonic() < until and kit.count(owner, "queue") and not self.faults:
            self.over.wait(0.05)
        self.over.set()
        for thread in threads:
            thread.join(20)
        assert not any(thread.is_alive() for thread in threads)
        assert self.faults == []

    def _guard(self, act, seed):
        try:
            act(random.Random(seed))
        except Exception as fault:  # noqa: BLE001 - of a thread: the test shows it
            self.faults.append(fault)
            self.over.set()

    def work(self, dice):
        hand = Hand(self.db.connect("worker"))
        while not self.over.is_set():
            leases = hand.claim(dice.randint(1, 5), traced=False)
            for lease in leases:
                self.over.wait(dice.random() / 50)  # on the wire
                kind = dice.choice(["sent", "sent", "deferred", "back"])
                if kind == "back":
                    hand.release([lease])
                    continue
                (answer,) = hand.settle(lease, kind, delay=0.02)
                while answer == "locked":
                    (answer,) = hand.settle(lease, kind, delay=0.02)
                assert answer == "settled"
                if kind == "sent":
                    self.sent.append(lease.message_id)

    def _each(self, dice, role="admin"):
        connection = self.db.connect(role)
        while not self.over.is_set():
            yield connection, dice.choice(self.mails)

    def cancel(self, dice):
        for connection, mail in self._each(dice, "producer"):
            if dice.random() < 0.3:
                status = kit.one(connection, "select pgmail.cancel(%s)", [mail])["status"]
                self.said["cancel", status] += 1
                if status == "cancelled":
                    self.cancelled.add(mail)

    def reschedule(self, dice):
        for connection, mail in self._each(dice, "producer"):
            at = f"now() + interval '{dice.choice([0, 30])} milliseconds'"
            try:
                said = kit.one(connection, f"select pgmail.reschedule(%s, {at})", [mail])
            except psycopg.Error as error:
                if kit.refusal(error).code != "time_too_far":  # it expires before
                    raise
            else:
                self.said["reschedule", said["status"]] += 1

    def stop(self, dice):
        # Each of the two has mails of its own: what one holds, nobody but a cancel moves until it releases it.
        connection = self.db.connect("admin")
        mine = self.shares.pop()
        while not self.over.is_set():
            mail = dice.choice(mine)
            status = kit.one(connection, "select pgmail.hold(%s)", [mail])["status"]
            self.said["hold", status] += 1
            if status == "held":
                for _ in range(3):
                    assert kit.state(connection, mail) in {"held", "cancelled"}
                status = kit.one(connection, "select pgmail.release(%s)", [mail])["status"]
                while status == "busy":  # a cancel has it and has not committed yet
                    status = kit.one(connection, "select pgmail.release(%s)", [mail])["status"]
                assert status == "released" or kit.state(connection, mail) == "cancelled"
                self.said["release", status] += 1

    def expire(self, dice):
        connection = self.db.connect("worker")
        while not self.over.is_set():
            self.said["expire", kit.one(connection, "select pgmail.expire_v1(5)") > 0] += 1
            self.over.wait(dice.random() / 50)


@pytest.mark.every_server
def test_whatever_happens_at_once_every_answer_is_true_and_the_ledger_holds(db, app, owner):
    mails = []
    for n in range(120):
        soon = kit.one(owner, "select now() + interval '2500 milliseconds'").isoformat()
        mails.append(kit.send(app, f"u{n}@example.org", **({"expires_at": soon} if n % 4 == 0 else {})))
    crowd = Crowd(db, mails)
    crowd.run(12)
    assert not crowd.cancelled & set(crowd.sent)
    assert len(crowd.sent) == len(set(crowd.sent))
    for mail in crowd.cancelled:
        assert kit.state(app, mail) == "cancelled"
    for mail in crowd.sent:
        assert kit.state(app, mail) == "sent"
    assert kit.differences(owner) == [0]
    # It was a race: each answer came.
    for what in ("cancelled", "too_late"):
        assert crowd.said["cancel", what], crowd.said
    assert crowd.said["hold", "held"]
    assert crowd.said["release", "released"]
    assert crowd.said["reschedule", "rescheduled"]
