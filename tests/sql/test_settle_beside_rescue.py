"""A settlement beside a rescue that commits after its snapshot and before its lock: fenced, nothing lost, no copy.

PostgreSQL locks the row in the version that the rescue made and asks the conditions again of that. To get there
for certain, the settling session waits at a policy of row-level security, which is asked of each row after the
snapshot was taken and before the row is locked.
"""

import threading

import pytest

from tests.sql import kit
from tests.waiting import eventually_now

WAITS = """
    create schema held;
    create function held.waits() returns boolean language plpgsql volatile as $$
    begin
      if current_setting('held.here', true) = 'on' then
        perform set_config('held.here', 'off', false);
        perform pg_advisory_lock(77);
        perform pg_advisory_unlock(77);
      end if;
      return true;
    end $$;
    grant usage on schema held to public;
    create policy held on pgmail.queue as restrictive for all to pgmail_owner using (held.waits()) with check (true);
    alter table pgmail.queue force row level security;
"""
ASKS = f"select count(*) from {kit.LOCKS_HERE} where locktype = 'advisory' and objid = 77 and not granted"


@pytest.fixture
def meanwhile(db, owner):
    """Settle, and do something while the settlement has its snapshot and not yet the lock; what it answered."""
    owner.execute(WAITS)

    def settle(hand, lease, kind, act):
        owner.execute("select pg_advisory_lock(77)")
        hand.connection.execute("select set_config('held.here', 'on', false)")
        answers = []
        thread = threading.Thread(target=lambda: answers.extend(hand.settle(lease, kind, delay=60, code=250)))
        thread.start()
        try:
            eventually_now(lambda: kit.one(owner, ASKS) == 1)
            act()
        finally:
            owner.execute("select pg_advisory_unlock(77)")
            thread.join(30)
        return answers

    return settle


@pytest.mark.parametrize("kind", ["deferred", "bounced", "dead", "held", "expired"])
def test_a_result_is_fenced_and_the_rescued_mail_waits_for_the_next_worker(
    app, owner, hand, other, *, meanwhile, kind
):
    mail = kit.send(app)
    (lease,) = hand.claim()
    assert meanwhile(hand, lease, kind, lambda: other.rescue(hand.epoch)) == ["fenced"]
    assert kit.rows(owner, "select leased_by, attempts, rescues from pgmail.queue") == [(None, 0, 1)]
    assert kit.state(app, mail) == "queued"
    told = kit.events(app, mail)
    assert {"in_doubt", {"dead": "failed"}.get(kind, kind)} <= set(told)  # it is on record all the same
    assert kit.differences(owner) == [0]
    (again,) = other.claim()
    assert other.settle(again) == ["settled"]
    assert (kit.state(app, mail), kit.count(owner, "outcome"), kit.count(owner, "dead_letter")) == (
        "sent",
        1,
        0,
    )
    assert kit.differences(owner) == [0]


def test_a_250_settles_the_rescued_mail_and_saves_a_copy(app, owner, hand, other, meanwhile):
    mail = kit.send(app)
    (lease,) = hand.claim()
    assert meanwhile(hand, lease, "sent", lambda: other.rescue(hand.epoch)) == ["settled"]
    assert (kit.count(owner, "queue"), kit.count(owner, "outcome")) == (0, 1)
    assert kit.state(app, mail) == "sent"
    assert other.claim() == []
    assert kit.differences(owner) == [0]


def test_a_250_whose_mail_another_worker_has_claimed_by_now_is_fenced_and_on_record(
    app, owner, hand, other, meanwhile
):
    mail = kit.send(app)
    (lease,) = hand.claim()
    taken = []

    def act():
        other.rescue(hand.epoch)
        taken.extend(other.claim())

    assert meanwhile(hand, lease, "sent", act) == ["fenced"]
    assert kit.rows(owner, "select leased_by from pgmail.queue") == [(other.epoch,)]
    assert kit.events(app, mail).count("sent") == 1
    assert other.settle(taken[0], "bounced", code=550) == ["settled"]
    assert kit.count(owner, "outcome") == 1
    assert kit.differences(owner) == [0]
