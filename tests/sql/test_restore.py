"""A restored database: marks that are missing stop all mail, and an operator decides what went out before."""

from datetime import timedelta
from threading import Thread
from uuid import uuid4

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.sql import kit
from tests.sql.kit import Hand, one, rows, send, send_many
from tests.waiting import eventually_now


class Process:
    """A process that remembers what it saw committed, as `store.history` does."""

    def __init__(self, connection):
        self.connection, self.witness = connection, uuid4()
        self.root = self.history = self.generation = self.seen_at = None
        self.marks = 0

    def mark(self):
        """One mark; why nothing may be sent, or None."""
        self.root = self.root or one(self.connection, "select root from pgmail.history")
        root, history, generation, marks, at, _, fenced = self.connection.execute(
            "select * from pgmail.mark_v1(%s, %s, %s, %s, %s, %s, 'host', 1, 'worker', null)",
            [self.root, self.history, self.generation, self.witness, self.marks, self.seen_at],
        ).fetchone()
        if root == self.root:
            self.history, self.generation, self.marks, self.seen_at = history, generation, marks, at
        return fenced

    def lost(self, owner, marks=3):
        """The database forgets some of its marks, as a restored one has."""
        owner.execute("update pgmail.witness set marks = marks - %s where id = %s", [marks, self.witness])


@pytest.fixture
def process(db):
    made = Process(db.connect("worker"))
    for _ in range(5):
        assert made.mark() is None
    return made


@pytest.fixture
def admin(db):
    return db.connect("admin")


def decide(admin, decision, since=None):
    """What `pgmail resume --after-restore` does; how many were in doubt."""
    n, last = admin.execute(
        "select * from pgmail.decide_restore(1, %s, %s, null)", [decision, since]
    ).fetchone()
    assert admin.execute(
        "select n from pgmail.decide_restore(1, %s, %s, %s)", [decision, since, last]
    ).fetchone() == (0,)
    admin.execute("select pgmail.accept_restore(%s, 'the disk died')", [decision])
    return n


def test_marks_that_are_all_there_stop_nothing(process, owner):
    assert process.mark() is None
    assert process.marks == 6
    owner.execute("update pgmail.witness set marks = marks + 1")  # its answer was lost
    assert process.mark() is None
    assert process.marks == 8
    assert kit.count(owner, "fence") == 0


def test_a_missing_mark_stops_every_claim_until_an_operator_has_decided(process, owner, app, admin, db):
    mail = send(app)
    hand = Hand(db.connect("worker"))
    process.lost(owner)
    assert "saw more than is here" in process.mark()
    with pytest.raises(psycopg.Error, match="declared dead"):
        hand.claim()  # it is to start anew
    hand = Hand(hand.connection)
    assert hand.claim() == []
    later = send(app, "bob@example.org")  # mail is taken in meanwhile
    assert "the database was restored" in one(app, "select pgmail.why(%s)", [mail])
    assert decide(admin, "resend") == 1
    assert {lease.message_id for lease in hand.claim()} == {mail, later}
    assert process.mark() is None
    assert rows(owner, "select actor, action from pgmail.audit where action like 'restore.%%'") == [
        ("pgmail_admin", "restore.resend")
    ]


def test_a_witness_that_is_gone_is_a_loss_unless_it_is_forgotten_by_age(process, owner):
    owner.execute("delete from pgmail.witness")
    process.seen_at -= timedelta(days=91)
    assert process.mark() is None
    owner.execute("delete from pgmail.witness")
    assert process.mark() is not None


def test_a_process_without_a_memory_trusts_the_database_but_heeds_the_fence(process, owner, db):
    process.lost(owner)
    process.mark()
    new = Process(db.connect("api"))
    assert new.mark() is not None


def test_a_memory_of_another_database_is_left_alone(process, owner):
    owner.execute("update pgmail.history set root = gen_random_uuid()")
    process.lost(owner)
    assert process.mark() is None
    assert process.marks == 5


def test_a_copy_from_before_an_accepted_restore_is_noticed_and_the_decision_holds_for_all(
    process, owner, admin, db
):
    other = Process(process.connection)
    other.mark()
    process.lost(owner)
    process.mark()
    decide(admin, "hold")
    assert process.mark() is None
    assert process.generation == 2
    assert other.mark() is None  # it remembers generation 1, and somebody has decided since
    owner.execute("delete from pgmail.history where generation = 2")  # the same backup once more
    late = Process(process.connection)
    late.__dict__.update(process.__dict__)
    assert "knows nothing of it" in process.mark()
    decide(admin, "hold")
    assert (process.mark(), late.mark()) == (None, None)
    assert process.generation == 3


def test_held_mail_waits_for_a_person_and_says_why(process, owner, app, admin, db):
    mail = send(app)
    process.mark()
    process.lost(owner)
    process.mark()
    assert decide(admin, "hold") == 1
    assert kit.state(app, mail) == "held"
    assert kit.events(app, mail)[-2:] == ["in_doubt", "held"]
    assert "it may have been sent" in one(app, "select pgmail.why(%s)", [mail])
    assert Hand(db.connect("worker")).claim() == []
    admin.execute("select pgmail.resolve(%s, 'resend')", [mail])
    assert len(Hand(db.connect("worker")).claim()) == 1
    assert kit.differences(owner) == [0]


def test_resent_mail_is_told_once_however_often_the_operator_runs_it(process, owner, app, admin):
    mail = send(app)
    process.mark()
    process.lost(owner)
    process.mark()
    for _ in range(2):
        admin.execute("select pgmail.decide_restore(1, 'resend', null, null)")
    admin.execute("select pgmail.accept_restore('resend', 'why not')")
    assert kit.state(app, mail) == "queued"
    assert kit.events(app, mail) == ["queued", "in_doubt"]


def test_mail_assumed_sent_is_settled_and_the_books_balance(process, owner, app, admin):
    mails = [row[1] for row in send_many(app, [kit.body(f"x{n}@example.org") for n in range(7)])]
    process.mark()
    process.lost(owner)
    process.mark()
    assert decide(admin, "assume_sent") == 7
    assert {kit.state(app, mail) for mail in mails} == {"sent"}
    assert kit.events(app, mails[0])[1:] == ["in_doubt", "sent"]
    assert kit.differences(owner) == [0]


def test_mail_enqueued_since_the_restore_and_mail_not_yet_due_are_not_in_doubt(process, owner, app, admin):
    old = send(app)
    scheduled = send(app, scheduled_at=one(owner, "select to_json(now() + interval '1 hour')"))
    process.mark()
    process.lost(owner)
    # The last moment that was seen, a while ago.
    process.seen_at = one(owner, "select clock_timestamp()") - timedelta(seconds=2)
    process.mark()
    owner.execute("select pg_sleep(0.05)")
    new = send(app, "new@example.org")
    assert one(admin, "select sum(recipients) from pgmail.restore_doubts(null)") == 1
    assert one(admin, "select sum(recipients) from pgmail.restore_doubts('2000-01-01')") is None
    assert decide(admin, "hold") == 1
    assert [kit.state(app, mail) for mail in (old, scheduled, new)] == ["held", "scheduled", "queued"]


@pytest.mark.parametrize("on_doubt", ["hold", "resend"])
@pytest.mark.parametrize("decision", ["hold", "resend", "assume_sent"])
def test_a_lease_of_a_worker_that_lives_through_it_is_in_doubt_and_goes_by_the_decision(
    process, owner, app, admin, db, *, on_doubt, decision
):
    kit.stream(owner, "transactional", on_doubt=on_doubt)
    mail = send(app)
    alive = Hand(db.connect("worker"))
    alive.claim(holds=on_doubt == "hold")
    # The copy was taken here: its intent, the end of data and the settle were acknowledged, and are lost.
    process.lost(owner)
    assert process.mark()
    assert kit.state(app, mail) == "held"
    assert one(admin, "select sum(recipients) from pgmail.restore_doubts(null)") == 1
    assert decide(admin, decision) == 1
    new = Hand(db.connect("worker"))
    one(alive.connection, "select pgmail.worker_stop_v1(%s)", [alive.epoch])
    one(new.connection, "select pgmail.rescue_v1(%s)", [alive.epoch])
    assert kit.state(app, mail) == {"hold": "held", "resend": "queued", "assume_sent": "sent"}[decision]
    assert kit.events(app, mail).count("in_doubt") == 2  # a worker had it; and the decision
    assert len(new.claim()) == (decision == "resend")
    assert kit.differences(owner) == [0]


def test_a_worker_from_before_a_fence_neither_beats_nor_begins_nor_settles_as_if_nothing_had_happened(
    process, owner, app, db
):
    for n in range(4):
        send(app, f"x{n}@example.org")
    alive = Hand(db.connect("worker"))
    accepted, refused, back, unsent = alive.claim(holds=True)
    alive.begin([accepted, refused])
    process.lost(owner)
    process.mark()
    assert one(alive.connection, "select pgmail.worker_beat_v1(%s, 'running', false)", [alive.epoch]) is False
    with pytest.raises(psycopg.Error, match="declared dead"):
        alive.begin([unsent])
    with pytest.raises(psycopg.Error, match="declared dead"):
        alive.claim()
    assert alive.release([back]) == []
    assert alive.settle(refused, "deferred", delay=3600, code=451) == ["fenced"]
    assert alive.settle(accepted, "sent") == ["settled"]  # which is worth knowing whoever says it
    states = [kit.state(app, lease.message_id) for lease in (accepted, refused, back, unsent)]
    assert states == ["sent", "held", "held", "held"]
    assert Hand(alive.connection).epoch > alive.epoch + 1000


def test_what_a_worker_had_in_hand_is_in_doubt_whenever_it_was_enqueued(process, owner, app, admin, db):
    process.lost(owner)
    process.seen_at = one(owner, "select clock_timestamp()") - timedelta(hours=1)
    mail = send(app)  # into the copy, where nobody had noticed yet
    Hand(db.connect("worker")).claim()
    process.mark()
    assert decide(admin, "hold") == 1
    assert kit.state(app, mail) == "held"
    assert "the database was restored" in one(app, "select pgmail.why(%s)", [mail])


def test_a_claim_on_its_way_is_waited_for_and_the_next_one_sees_the_fence(process, owner, app, db):
    mail = send(app)
    hand = Hand(db.connect("worker", autocommit=False))
    other = Hand(db.connect("worker"))
    hand.connection.commit()
    hand.connection.execute("set idle_in_transaction_session_timeout = 0")
    hand.connection.commit()
    hand.claim()
    hand.connection.execute(
        "select set_config(name, '0', true) from pg_settings"
        " where name in ('idle_in_transaction_session_timeout', 'transaction_timeout')"
    )
    process.lost(owner)
    noticing = Thread(target=process.mark)
    noticing.start()
    waiting = (
        f"select count(*) from {kit.LOCKS_HERE} where relation = 'pgmail.worker'::regclass and not granted"
    )
    eventually_now(lambda: one(owner, waiting) == 1)
    came = []
    claiming = Thread(target=lambda: came.append(refused(other.claim)))
    claiming.start()
    eventually_now(lambda: one(owner, waiting) == 2)
    hand.connection.commit()
    noticing.join()
    claiming.join()
    assert ("declared dead" in came[0], kit.state(app, mail)) == (True, "held")


def refused(act):
    """What an act was refused for."""
    with pytest.raises(psycopg.Error) as caught:
        act()
    return str(caught.value)


def test_a_lease_whose_row_is_locked_is_taken_away_before_a_decision_is_accepted(
    process, owner, app, admin, db
):
    kit.stream(owner, "transactional", on_doubt="hold")
    mail = send(app)
    hand = Hand(db.connect("worker"))
    hand.claim(holds=True)
    busy = db.connect(autocommit=False)
    busy.execute("select from pgmail.queue for update")
    process.lost(owner)
    process.mark()
    assert rows(admin, "select recipients, leased from pgmail.restore_doubts(null)") == [(0, 1)]
    assert one(admin, "select n from pgmail.decide_restore(1, 'hold', null, null)") == 0
    with pytest.raises(psycopg.Error, match="run it again"):
        admin.execute("select pgmail.accept_restore('hold', 'the disk died')")
    busy.rollback()
    assert one(owner, "select pgmail.rescue_v1(%s)", [hand.epoch]) == 1  # the leader comes first
    assert decide(admin, "hold") == 1
    assert (kit.state(app, mail), kit.events(app, mail).count("delayed")) == ("held", 0)


def test_a_process_that_looks_while_a_decision_is_on_its_way_makes_no_second_fence(process, owner, app, db):
    late = Process(db.connect("worker"))
    for _ in range(4):
        late.mark()
    process.lost(owner)
    late.lost(owner)
    assert process.mark()
    admin = db.connect("admin", autocommit=False)
    admin.execute("select pgmail.accept_restore('hold', 'the disk died')")
    looking = Thread(target=late.mark)
    looking.start()
    eventually_now(lambda: one(owner, f"select count(*) from {kit.LOCKS_HERE} where not granted") == 1)
    admin.commit()
    looking.join()
    assert kit.count(owner, "fence") == 0
    assert (process.mark(), late.mark()) == (None, None)
    assert late.generation == 2


def test_a_fence_ends_workers_once_and_no_process_of_maintain(process, owner, db):
    keeper = one(db.connect("worker"), "select pgmail.worker_start_v1('host', 1, 'maintain', 0)")
    Hand(db.connect("worker"))
    process.lost(owner)
    process.mark()
    new = Hand(db.connect("worker"))
    process.mark()
    late = Process(db.connect("worker"))
    late.__dict__.update(process.__dict__ | {"marks": process.marks + 9})
    late.mark()
    assert rows(owner, "select epoch from pgmail.worker order by 1") == [(keeper,), (new.epoch,)]


def test_nothing_expires_while_nobody_has_decided(process, owner, app, db_clock):
    mail = send(app, expires_at=(db_clock.now() + timedelta(hours=1)).isoformat())
    process.lost(owner)
    process.mark()
    db_clock.advance(timedelta(hours=2))
    assert one(owner, "select pgmail.expire_v1()") == 0
    assert kit.state(app, mail) == "queued"


def test_an_operator_can_stop_all_mail_where_nobody_noticed(app, admin, db):
    send(app)
    with pytest.raises(psycopg.Error, match="required"):
        admin.execute("select pgmail.stop_for_restore('')")
    admin.execute("select pgmail.stop_for_restore('restored from last night')")
    assert Hand(db.connect("worker")).claim() == []
    assert decide(admin, "hold") == 1


def test_deciding_is_refused_without_a_restore_and_without_a_reason(admin):
    for statement in (
        "select pgmail.decide_restore(1, 'hold', null, null)",
        "select pgmail.accept_restore('hold', 'because')",
    ):
        with pytest.raises(psycopg.Error, match="no restore was noticed"):
            admin.execute(statement)
    admin.execute("select pgmail.stop_for_restore('restored')")
    with pytest.raises(psycopg.Error, match="must be hold"):
        admin.execute("select pgmail.decide_restore(1, 'whatever', null, null)")
    with pytest.raises(psycopg.Error, match="required"):
        admin.execute("select pgmail.accept_restore('hold', ' ')")


def test_where_the_server_tells_its_place_it_is_shown(process, owner):
    process.connection.execute(
        "select pgmail.recall_v1(%s, %s, %s, %s, 99, now(), 'somebody', %s)",
        [process.root, process.history, process.generation, process.witness, Jsonb({"timeline": 1})],
    )
    seen, found = owner.execute("select seen, found from pgmail.fence").fetchone()
    assert seen == {"timeline": 1}
    assert {"system", "timeline", "lsn"} == set(found)
