"""Retention: what is settled goes after its time, what waits stays whole, and nobody waits for it."""

from datetime import timedelta

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.sql import kit

BASES = ("message", "attachment", "tag", "recipient", "outcome", "event")


def weekly(owner, base):
    return [row[0] for row in kit.rows(owner, "select name from pgmail.weekly_partitions(%s)", [base])]


def drop(connection, base):
    """Name of what was dropped and how many rows were kept."""
    return connection.execute("select name, moved from pgmail.drop_partition_v1(%s)", [base]).fetchone()


def drop_all(connection, bases=BASES):
    dropped = []
    for base in bases:
        while (row := drop(connection, base))[0]:
            dropped.append(row)
    return dropped


def mail(app, to="ada@example.org"):
    return kit.send(
        app, to, attachments=[{"filename": "a.txt", "content": "aGVsbG8="}], tags={"kind": "x", "more": "y"}
    )


def present(owner, message):
    """How many rows each table has of an email."""
    return {
        base: kit.one(
            owner,
            f"select count(*) from pgmail.{base} where {'id' if base == 'message' else 'message_id'} = %s",
            [message],
        )
        for base in BASES
    }


def settle(hand, kind="sent", **more):
    leases = hand.claim()
    assert hand.settle(leases, kind, **more) == ["settled"] * len(leases)


@pytest.fixture
def later(db_clock, hand):
    """Let days pass; partitions are made as a leader would."""

    def pass_(days):
        db_clock.advance(timedelta(days=days))
        kit.one(hand.connection, "select pgmail.make_partitions_v1(14)")

    return pass_


def test_settled_mail_loses_its_content_after_a_month_and_its_record_after_three(app, owner, hand, later):
    old = mail(app)
    settle(hand)
    assert drop_all(hand.connection) == []
    later(40)
    assert {name.split("_")[0] for name, _ in drop_all(hand.connection)} == {"message", "attachment", "tag"}
    assert set(list(present(owner, old).values())[:3]) == {0}
    assert kit.states(app, old) == ["sent"]
    assert kit.events(app, old) == ["sending", "sent"]
    later(60)
    drop_all(hand.connection)
    assert set(present(owner, old).values()) == {0}
    with pytest.raises(psycopg.Error, match="past its retention of 90 days") as error:
        kit.states(app, old)
    assert kit.refusal(error.value).code == "not_found"
    assert kit.rows(owner, "select sent, difference from pgmail.ledger") == [(1, 0)]
    assert kit.rows(owner, "select overdue, kept from pgmail.retention_state()") == [(0, 0)]


def test_an_id_that_never_was_is_not_said_to_be_past_anything(app, owner):
    with pytest.raises(psycopg.Error) as error:
        kit.states(app, kit.one(owner, "select pgmail.uuid7()"))
    assert "retention" not in error.value.diag.message_primary


@pytest.mark.parametrize("state", ["queued", "held", "dead", "sending"])
def test_mail_that_is_not_settled_is_kept_and_is_sent_after_all(app, owner, hand, later, state):
    waits = mail(app, ["ada@example.org", "bob@example.org"])
    first, second = sorted(hand.claim(), key=lambda lease: kit.recipients(app, waits).index(lease.id))
    assert hand.settle(second) == ["settled"]
    if state == "queued":
        hand.release([first])
    elif state != "sending":
        hand.settle(first, state, reason="poison", error="it broke")
    before = present(owner, waits)
    own = kit.events(app, first.id)
    events = kit.one(owner, "select count(*) from pgmail.event where recipient_id = %s", [first.id])
    later(200)
    dropped = drop_all(hand.connection)
    assert {name.split("_")[0] for name, _ in dropped} == set(BASES)
    after = present(owner, waits)
    # The email with its files and tags; of its people only who is not settled, with the whole record of that.
    assert after == before | {"recipient": 1, "outcome": 0, "event": events}
    assert kit.states(app, waits) == [state]
    assert kit.events(app, first.id) == own
    assert kit.rows(owner, "select sent, difference from pgmail.ledger") == [(1, 0)]
    assert kit.rows(owner, "select strays from pgmail.partition_state()") == [(0,)]  # no alarm for it
    assert kit.one(owner, "select kept from pgmail.retention_state()") == sum(after.values())
    for base in BASES:
        assert kit.one(hand.connection, "select pgmail.drop_strays_v1(%s)", [base]) == 0

    if state == "sending":
        assert hand.settle(first) == ["settled"]
    else:
        kit.one(owner, "select pgmail.retry(%s)", [first.id])
        settle(hand)
    assert kit.states(app, waits) == ["sent"]
    for base in BASES:
        kit.one(hand.connection, "select pgmail.drop_strays_v1(%s)", [base])
    assert set(present(owner, waits).values()) == {0}
    assert kit.one(owner, "select difference from pgmail.ledger") == 0


def test_one_dead_letter_of_a_large_mailing_moves_its_own_rows_only(app, owner, hand, later):
    kit.send(app, [f"x{n}@example.org" for n in range(40)], mode="personal")
    dead, *rest = hand.claim()
    assert hand.settle(rest) == ["settled"] * 39
    hand.settle(dead, "dead", reason="poison", error="it broke")
    later(200)
    moved = {name.split("_")[0]: rows for name, rows in drop_all(hand.connection) if rows}
    assert moved == {"message": 1, "recipient": 1, "event": 2}


def parents_locked(owner, connection):
    return {
        row[0]
        for row in kit.rows(
            owner,
            "select c.relname from pg_locks l join pg_class c on c.oid = l.relation"
            " where l.pid = %s and l.mode = 'AccessExclusiveLock' and l.database ="
            " (select oid from pg_database where datname = current_database())",
            [connection.info.backend_pid],
        )
    }


def test_a_week_of_which_too_many_rows_must_be_kept_stays_and_nothing_is_locked(app, owner, hand, later):
    kit.send_many(
        app, [kit.body([f"x{n}-{m}@example.org" for m in range(30)], mode="personal") for n in range(70)]
    )
    later(200)  # 70 emails, 2,100 recipients that wait
    drop_all(hand.connection, ("message", "attachment", "tag"))
    (week,) = (
        name
        for name, since in kit.rows(owner, "select name, since from pgmail.weekly_partitions('recipient')")
        if kit.count(owner, name)
    )
    with hand.connection.transaction():
        while row := drop(hand.connection, "recipient")[0]:
            assert row != week
        assert week not in parents_locked(owner, hand.connection)
    assert week in weekly(owner, "recipient")
    assert kit.one(owner, "select overdue from pgmail.retention_state()") >= 1  # doctor tells
    kit.one(owner, "select count(*) from (select pgmail.cancel(id) from pgmail.message_default) x")
    assert week in {name for name, _ in drop_all(hand.connection, ("recipient",))}


def test_files_count_by_their_size(app, owner, hand, later):
    kit.send(app, attachments=[{"filename": "a.txt", "content": "aGVsbG8="}])
    owner.execute(
        "update pgmail.attachment set body ="
        " (select string_agg(sha256(i::text::bytea), '') from generate_series(1, 1100000) i)"
    )
    later(60)
    assert drop(hand.connection, "message")[0]
    drop_all(hand.connection, ("message",))
    dropped = drop_all(hand.connection, ("attachment",))
    assert sum(rows for _, rows in dropped) == 0
    assert kit.count(owner, "attachment") == 1


def test_a_week_that_is_kept_does_not_make_stragglers_look_like_a_want_of_partitions(app, owner, hand, later):
    first = weekly(owner, "recipient")[0]
    kit.send(app)
    later(14)
    kit.send(app)
    later(200)
    assert drop_all(hand.connection)
    # As if the week before the stragglers' were kept, for too much of it waits.
    for base in BASES:
        week = first.removeprefix("recipient_")
        owner.execute(f"select pgmail.make_partition('{base}', to_date('{week}', 'YYYYMMDD')::timestamptz)")
    assert kit.one(owner, "select kept from pgmail.retention_state()") > 0
    assert kit.one(owner, "select strays from pgmail.partition_state()") == 0


def test_a_week_that_something_of_somebody_else_hangs_on_is_passed_over(app, owner, hand, later):
    kit.send(app)
    hand.settle(hand.claim())
    week = kit.one(owner, "select name from pgmail.weekly_partitions('message') p order by p.since limit 1")
    owner.execute(f"create view public.mine as select id from pgmail.{week}")
    later(60)
    names = []
    while (found := drop(hand.connection, "message"))[0]:
        names.append(found[0])
    assert names
    assert week not in names
    assert kit.one(owner, "select overdue from pgmail.retention_state()") > 0


def test_an_open_transaction_makes_the_drop_give_up_and_sends_go_on(db, app, owner, hand, later):
    mail(app)
    settle(hand)
    later(40)
    before = weekly(owner, "message")
    with db.connect("reader", autocommit=False) as reading:
        reading.execute("select count(*) from pgmail.message")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            drop(hand.connection, "message")
        assert weekly(owner, "message") == before
        app.execute("set statement_timeout = '5s'")
        now = mail(app)
        settle(hand)
        assert kit.state(app, now) == "sent"
        reading.rollback()
    assert drop(hand.connection, "message")[0] == before[0]


def test_the_drop_waits_less_than_anybody_would_notice_and_holds_one_table(owner, hand, later, app):
    mail(app)
    settle(hand)
    later(40)
    hand.connection.execute("begin")
    name, _ = drop(hand.connection, "message")
    assert name
    assert kit.one(hand.connection, "select current_setting('lock_timeout')") == "200ms"
    held = kit.rows(
        owner,
        "select distinct c.relname from pg_locks l join pg_class c on c.oid = l.relation"
        " where l.pid = %s and l.mode = 'AccessExclusiveLock' and c.relnamespace = 'pgmail'::regnamespace"
        "   and c.relkind in ('r', 'p')",
        [hand.connection.info.backend_pid],
    )
    assert {row[0] for row in held} <= {"message", "message_default", name}
    hand.connection.execute("rollback")


def test_making_a_partition_locks_one_table(owner, hand, db_clock):
    db_clock.advance(timedelta(days=14))
    hand.connection.execute("begin")
    made = kit.one(hand.connection, "select pgmail.make_partition_v2()")
    held = kit.rows(
        owner,
        "select distinct c.relname from pg_locks l join pg_class c on c.oid = l.relation"
        " where l.pid = %s and l.mode in ('AccessExclusiveLock', 'ShareUpdateExclusiveLock')"
        "   and c.relnamespace = 'pgmail'::regnamespace and c.relkind in ('r', 'p')",
        [hand.connection.info.backend_pid],
    )
    base = made.rpartition("_")[0]
    assert {row[0] for row in held} <= {base, base + "_default", made}
    hand.connection.execute("rollback")


def test_the_outcome_stays_as_long_as_the_recipient(app, owner, hand, later):
    mail(app)
    settle(hand)
    later(200)
    assert drop(hand.connection, "outcome")[0] is None
    assert drop(hand.connection, "event")[0] is None
    assert drop(hand.connection, "tag")[0] is None
    assert drop(hand.connection, "recipient")[0]
    assert drop(hand.connection, "outcome")[0]


def test_for_ever_is_for_ever_and_nonsense_is_refused(app, owner, hand, later):
    old = mail(app)
    settle(hand)
    owner.execute("select pgmail.set_retention(30, null, 'the law says so')")
    later(3650)
    assert {name.split("_")[0] for name, _ in drop_all(hand.connection)} == {"message", "attachment", "tag"}
    assert kit.states(app, old) == ["sent"]
    owner.execute("select pgmail.set_retention(null, null)")
    assert kit.one(owner, "select count(*) from pgmail.audit where action = 'retention.set'") == 2
    for content, record in ((0, 1), (90, 30), (None, 30), (1, 40000)):
        with pytest.raises(psycopg.Error) as error:
            owner.execute("select pgmail.set_retention(%s, %s)", [content, record])
        assert kit.refusal(error.value).code == "invalid_retention"


def stored(owner, message):
    return kit.one(
        owner, "select convert_from(content, 'UTF8')::jsonb from pgmail.message where id = %s", [message]
    )


def test_a_stream_that_keeps_less_has_its_settled_texts_files_and_variables_emptied(app, owner, hand, later):
    kit.stream(owner, "secret", keep_content_days=2)
    person = {"address": "ada@example.org", "variables": {"code": "1234"}}
    secret = kit.send(
        app, [person], stream="secret", mode="personal", text="{{ code }}",
        attachments=[{"filename": "a.txt", "content": "aGVsbG8="}],
    )  # fmt: skip
    waits = kit.send(app, "bob@example.org", stream="secret")
    other = kit.send(app, "cy@example.org")
    leases = {lease.message_id: lease for lease in hand.claim()}
    hand.settle([leases[secret], leases[other]])
    hand.settle(leases[waits], "dead", reason="poison", error="x")
    empty = "select pgmail.empty_content_v1()"
    assert kit.one(hand.connection, empty) == 0
    later(3)
    assert kit.one(hand.connection, empty) == 3
    assert stored(owner, secret) == {"from": {"address": "shop@example.com"}}
    assert kit.one(owner, "select variables from pgmail.recipient where message_id = %s", [secret]) is None
    assert kit.count(owner, "attachment") == 0
    assert stored(owner, waits)["text"] == stored(owner, other)["text"] == "Hello"
    assert kit.states(app, secret) == ["sent"]
    assert kit.one(hand.connection, empty) == 0
    kit.one(owner, "select pgmail.discard(%s)", [leases[waits].id])
    assert kit.one(hand.connection, empty) == 1
    assert "text" not in stored(owner, waits)
    assert kit.one(hand.connection, empty) == 0
    assert kit.count(owner, "content_left") == 0


def test_emptying_goes_on_where_it_stopped(app, owner, hand, later):
    kit.stream(owner, "secret", keep_content_days=1)
    kit.send_many(app, [kit.body(f"x{n}@example.org", stream="secret") for n in range(25)])
    settle(hand, stream="secret")
    later(2)
    looked = []
    while n := kit.one(hand.connection, "select pgmail.empty_content_v1(10)"):
        looked.append(n)
    assert looked == [10, 10, 5]
    assert kit.one(owner, "select count(*) from pgmail.message where content like '%%Hello%%'::bytea") == 0


@pytest.mark.parametrize("days", [0, -1, 40000, "x"])
def test_a_stream_keeps_its_content_for_whole_days_or_as_the_fleet(owner, days):
    with pytest.raises(psycopg.Error) as error:
        owner.execute("select pgmail.save_stream('s', %s)", [Jsonb({"keep_content_days": days})])
    assert kit.refusal(error.value).code == "invalid_stream"
