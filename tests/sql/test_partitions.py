"""Partitions: made ahead, made up for when they ran out, never in the way of a send."""

import psycopg
import pytest
from psycopg import sql

from tests.sql import kit

_BASES = ("message", "attachment", "tag", "recipient", "event", "outcome")
_MAKE = "select pgmail.make_partitions_v1()"


def weekly(owner):
    found = kit.rows(
        owner,
        "select inhrelid::regclass::text from pg_inherits join pg_class c on c.oid = inhrelid"
        " where relnamespace = 'pgmail'::regnamespace and relkind = 'r' and relname !~ '_default$'",
    )
    return {name.removeprefix("pgmail.") for (name,) in found}


@pytest.fixture
def ran_out(owner):
    """All weekly partitions are gone."""
    for name in weekly(owner):
        owner.execute(sql.SQL("drop table pgmail.{}").format(sql.Identifier(name)))


def send_all_kinds(app):
    return kit.send(
        app,
        ["a@example.org", "gone@example.org"],
        attachments=[{"filename": "a.txt", "content": "aGVsbG8="}],
        tags={"kind": "x"},
    )


def strays(owner):
    return {base: kit.count(owner, base + "_default") for base in _BASES}


def test_partitions_reach_at_least_thirty_days_ahead_and_making_them_again_makes_none(owner, hand):
    assert kit.one(owner, "select days_left from pgmail.partition_state()") >= 30
    assert kit.one(hand.connection, _MAKE) == 0


def test_time_that_passes_makes_new_ones(db_clock, owner, hand):
    before = weekly(owner)
    db_clock.advance(14 * 86400)
    assert kit.one(hand.connection, _MAKE) == 2 * len(_BASES)
    assert before < weekly(owner)


def test_mail_goes_to_its_week_and_never_to_the_default(app, owner):
    send_all_kinds(app)
    assert set(strays(owner).values()) == {0}


def test_when_partitions_ran_out_mail_is_taken_told_and_moved_out_later(app, owner, hand, ran_out):
    owner.execute("select pgmail.suppress('gone@example.org')")
    mail = send_all_kinds(app)
    before = kit.states(app, mail), kit.events(app, mail)
    assert strays(owner) == {
        "message": 1,
        "attachment": 1,
        "tag": 1,
        "recipient": 2,
        "event": 1,
        "outcome": 1,
    }
    assert kit.rows(owner, "select * from pgmail.partition_state()") == [(0, 7)]
    hand.settle(hand.claim())
    assert kit.one(hand.connection, _MAKE) == 7 * len(_BASES)
    assert set(strays(owner).values()) == {0}
    assert kit.states(app, mail) == ["sent", "suppressed"]
    assert before[0] == ["queued", "suppressed"]
    assert set(before[1]) < set(kit.events(app, mail))
    assert kit.rows(owner, "select strays from pgmail.partition_state()") == [(0,)]
    assert kit.differences(owner) == [0]
    send_all_kinds(app)
    assert set(strays(owner).values()) == {0}


def test_the_partition_maker_gives_up_on_a_lock_rather_than_wait_and_leaves_nothing_half_made(
    db, app, owner, hand, ran_out
):
    with db.connect("producer", autocommit=False) as open_:
        send_all_kinds(open_)  # holds a lock on the default partitions
        with pytest.raises(psycopg.errors.LockNotAvailable):
            hand.connection.execute(_MAKE)
        assert weekly(owner) == set()
        open_.commit()
    assert kit.one(hand.connection, _MAKE) == 7 * len(_BASES)


def test_the_partition_maker_gives_up_before_the_deadlock_detector_looks_for_a_victim(owner, hand):
    hand.connection.execute("begin")
    hand.connection.execute(_MAKE)
    shorter = (
        "select current_setting('lock_timeout')::interval < current_setting('deadlock_timeout')::interval"
    )
    assert kit.one(hand.connection, shorter)
    hand.connection.execute("rollback")


def test_partitions_are_made_while_a_send_is_open(db, db_clock, hand):
    with db.connect("producer", autocommit=False) as open_:
        send_all_kinds(open_)
        db_clock.advance(7 * 86400)
        assert kit.one(hand.connection, _MAKE) == len(_BASES)
        open_.rollback()


def test_a_new_partition_has_row_level_security_the_keys_of_its_parent_and_no_rights_of_anybody(
    owner, hand, db_clock
):
    db_clock.advance(14 * 86400)
    hand.connection.execute(_MAKE)
    bare = kit.rows(
        owner,
        "select c.relname from pg_class c where c.relnamespace = 'pgmail'::regnamespace and c.relispartition"
        " and c.relkind = 'r' and (not c.relrowsecurity or exists ("
        "   select 1 from aclexplode(c.relacl) a where a.grantee <> c.relowner) or not exists ("
        "   select 1 from pg_index i join pg_inherits h on h.inhrelid = i.indexrelid"
        "   where i.indrelid = c.oid and i.indisprimary))",
    )
    assert bare == []


def test_texts_are_compressed_by_lz4_in_every_partition_where_the_server_has_it(owner):
    offered = kit.one(owner, "select enumvals from pg_settings where name = 'default_toast_compression'")
    used = kit.rows(
        owner,
        "select distinct a.attcompression::text from pg_partition_tree('pgmail.message') p"
        " join pg_attribute a on a.attrelid = p.relid where a.attname = 'content'",
    )
    assert used == [("l" if "lz4" in offered else "",)]
