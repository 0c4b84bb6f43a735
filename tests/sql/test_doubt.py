"""What a dead worker leaves: on streams that hold, exactly the mail whose intent was committed is in doubt."""

import time

import psycopg
import pytest

from tests.sql import kit

pytestmark = pytest.mark.one_server


@pytest.fixture
def careful(db):
    return kit.stream(db.connect(), "careful", on_doubt="hold")


def details(connection, mail):
    """Type without its lead, detail, relay, worker: of what happened after it was queued."""
    told = kit.rows(connection, "select type, detail, relay, worker from pgmail.trace(%s)", [mail])
    return [(type_.removeprefix("email."), *rest) for type_, *rest in told][1:]


def test_exactly_the_mail_with_an_intent_is_held_and_the_rest_goes_back_without_doubt(
    app, careful, hand, other
):
    mails = [kit.send(app, f"u{n}@example.org", stream=careful) for n in range(3)]
    leases = {lease.message_id: lease for lease in hand.claim(traced=False, holds=True)}
    assert all(lease.vowed for lease in leases.values())
    assert hand.begin(leases[mails[1]], "smart") == ["begun"]
    assert other.rescue(hand.epoch) == 3
    assert [kit.state(app, mail) for mail in mails] == ["queued", "held", "queued"]
    lost = f"worker {hand.epoch} died; this mail may have been sent"
    assert sorted(details(app, mails[1])) == [
        ("held", lost, "smart", hand.epoch),
        ("in_doubt", lost, "smart", hand.epoch),
    ]
    unsent = f"worker {hand.epoch} died before it sent this mail"
    assert details(app, mails[0]) == [("delayed", unsent, None, hand.epoch)]
    assert len(other.claim(holds=True)) == 2


def test_a_lease_without_a_vow_is_in_doubt_whatever_its_worker_did(app, careful, hand, other):
    """A worker of an older version, or one that took it before the stream was set to hold."""
    mail = kit.send(app, stream=careful)
    (lease,) = hand.claim()
    assert not lease.vowed
    other.rescue(hand.epoch)
    assert kit.state(app, mail) == "held"


def test_a_vow_of_an_earlier_lease_says_nothing_of_this_one(app, careful, hand, other):
    mail = kit.send(app, stream=careful)
    hand.release(hand.claim(holds=True))
    hand.claim()
    other.rescue(hand.epoch)
    assert kit.state(app, mail) == "held"


def test_an_intent_of_an_earlier_lease_puts_this_one_in_no_doubt(app, careful, hand, other):
    mail = kit.send(app, stream=careful)
    leases = hand.claim(holds=True)
    assert hand.begin(leases) == ["begun"]
    hand.release(leases)  # the end of data was withheld after all
    hand.claim(holds=True)
    other.rescue(hand.epoch)
    assert kit.state(app, mail) == "queued"
    assert "in_doubt" not in kit.events(app, mail)


def test_an_unsent_lease_of_a_stream_set_back_to_resend_is_not_in_doubt(db, app, careful, hand, other):
    mail = kit.send(app, stream=careful)
    hand.claim(holds=True)
    kit.stream(db.connect(), careful, on_doubt="resend")
    other.rescue(hand.epoch)
    assert "in_doubt" not in kit.events(app, mail)


def test_an_intent_is_not_committed_for_a_lease_that_is_not_ours(app, careful, hand, other):
    kit.send(app, stream=careful)
    (lease,) = hand.claim(holds=True)
    assert hand.begin(lease._replace(claims=lease.claims + 1)) == [None]
    assert other.begin(lease) == [None]
    hand.release([lease])
    assert hand.begin(lease) == [None]


def test_a_worker_that_was_declared_dead_begins_nothing(app, careful, hand, other):
    kit.send(app, stream=careful)
    leases = hand.claim(holds=True)
    other.rescue(hand.epoch)
    with pytest.raises(psycopg.Error) as refused:
        hand.begin(leases)
    assert refused.value.sqlstate == "PM410"


def test_an_intent_waits_for_nobody_that_holds_its_row(db, app, careful, hand):
    for n in range(3):
        kit.send(app, f"u{n}@example.org", stream=careful)
    leases = hand.claim(holds=True)
    with db.connect(autocommit=False) as holder:
        holder.execute("select from pgmail.queue where id = %s for update", [leases[1].id])
        assert hand.begin(leases) == ["begun", "locked", "begun"]
        holder.rollback()
    assert hand.begin(leases) == ["begun", "begun", "begun"]  # to say it twice does no harm


def test_an_intent_survives_a_crash_of_the_server_also_where_commits_are_asynchronous(app, careful, hand):
    kit.send(app, stream=careful)
    leases = hand.claim(holds=True)
    hand.connection.execute("set synchronous_commit = off")
    hand.connection.autocommit = False
    hand.begin(leases)
    assert kit.one(hand.connection, "show synchronous_commit") == "on"
    hand.connection.commit()
    assert kit.one(hand.connection, "show synchronous_commit") == "off"
    hand.connection.rollback()


def test_claims_and_intents_are_hot_updates(db, app, owner, careful, hand):
    figures = (
        "select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables where relid = 'pgmail.queue'::regclass"
    )
    until = time.monotonic() + 60

    def share():
        """Of the updates of one round, those that were HOT: fewer while another test's transaction keeps dead rows."""
        owner.execute("truncate pgmail.queue")
        kit.send_many(app, [kit.body(f"u{n}@d{n % 5}.example", stream=careful) for n in range(400)])
        owner.execute("vacuum pgmail.queue")
        hand.connection.execute("select pg_stat_force_next_flush()")
        before = kit.rows(owner, figures)[0]
        leases = hand.claim(holds=True)
        assert set(hand.begin(leases)) == {"begun"}
        hand.connection.execute("select pg_stat_force_next_flush()")
        after = kit.rows(owner, figures)[0]
        assert after[0] - before[0] == 800
        return (after[1] - before[1]) / 800

    while (last := share()) < 0.9:
        assert time.monotonic() < until, last


def test_why_and_status_say_in_words_that_it_is_in_doubt_and_what_to_do(app, careful, hand, other):
    mail = kit.send(app, stream=careful)
    hand.begin(hand.claim(holds=True))
    other.rescue(hand.epoch)
    said = kit.one(app, "select pgmail.why(%s)", [mail])
    assert "is held in doubt: its worker died and may have sent it" in said
    assert "pgmail.resolve(id, 'assume_sent')" in said
    assert "relay default" in said
    assert kit.one(app, "select reason from pgmail.status(%s)", [mail]).startswith("in doubt: ")
