"""Suppressions: whatever mail waits for, it is stopped when its turn comes; many come at once; what expired goes."""

from datetime import timedelta

import psycopg
import pytest

from tests.sql import kit
from tests.sql.kit import Refusal


@pytest.fixture
def admin(db):
    return db.connect("admin")


def many(connection, *entries, **more):
    """Entries are (address, stream, reason, expires_at); the counts and the faults' (position, code)."""
    columns = [[entry[i] for entry in entries] for i in (0, 1, 2)]
    answer = connection.execute(
        "select * from pgmail.suppress_many(%s::text[], %s::text[], %s::text[], %s::text[],"
        " %s::timestamptz[], %s::timestamptz[], %s, %s, %s)",
        [
            *columns, [None] * len(entries), [None] * len(entries), [entry[3] for entry in entries],
            more.get("strict", False), more.get("store", True), more.get("audit"),
        ],
    ).fetchone()  # fmt: skip
    return answer[0], answer[1:4], [(fault["position"], fault["code"]) for fault in answer[4]]


def listed(owner):
    return kit.rows(owner, "select address, stream, reason from pgmail.suppression order by 1, 2")


def test_many_are_added_changed_or_left_and_bad_ones_told(admin, owner, db_clock):
    later, past = db_clock.now() + timedelta(days=1), db_clock.now() - timedelta(days=1)
    entries = [
        ("A@Example.org", "", "bounced", None),
        ("nobody", "", "manual", None),
        ("b@example.org", "broadcast", "unsubscribed", later),
        ("c@example.org", "nowhere", "manual", None),
        ("d@example.org", "", "because", None),
        ("e@example.org", "", "invalid", past),
        ("a@example.org", "", "complained", None),  # the later one counts
    ]
    audit, counts, faults = many(admin, *entries)
    assert counts == (2, 0, 0)
    assert faults == [
        (1, "invalid_address"), (3, "unknown_stream"), (4, "invalid_reason"), (5, "time_in_past"),
    ]  # fmt: skip
    assert listed(owner) == [
        ("a@example.org", "", "complained"),
        ("b@example.org", "broadcast", "unsubscribed"),
    ]
    assert many(admin, *entries, audit=audit)[1] == (0, 0, 2)
    assert many(admin, ("a@example.org", "", "manual", None), audit=audit)[1] == (0, 1, 0)
    acts = kit.rows(
        owner, "select id, actor, object, reason from pgmail.audit where action = 'suppression.import'"
    )
    assert [act[:3] for act in acts] == [(audit, "pgmail_admin", "3")]


def test_strict_is_all_or_nothing_and_a_dry_run_is_nothing(admin, owner):
    good, bad = ("a@example.org", "", "bounced", None), ("b@", "", "bounced", None)
    with pytest.raises(psycopg.Error) as caught:
        many(admin, good, bad, strict=True)
    assert kit.refusal(caught.value) == Refusal("invalid_address", "/1/address", "PM422")
    assert many(admin, good, bad, store=False) == (None, (1, 0, 0), [(1, "invalid_address")])
    assert listed(owner) == []


def test_nobody_adds_to_anothers_import(admin, owner):
    audit, _, _ = many(owner, ("a@example.org", "", "bounced", None))
    with pytest.raises(psycopg.Error) as caught:
        many(admin, ("b@example.org", "", "bounced", None), audit=audit)
    assert kit.refusal(caught.value).code == "not_found"
    assert len(listed(owner)) == 1


def test_what_expired_suppresses_nothing_and_is_cleared_away(app, owner, hand, db_clock):
    until = db_clock.now() + timedelta(hours=1)
    owner.execute("select pgmail.suppress('a@example.org', 'bounced', null, '', %s)", [until])
    owner.execute("select pgmail.suppress('b@example.org', 'bounced')")
    purge = "select pgmail.purge_suppressions_v1()"
    assert kit.one(hand.connection, purge) == 0
    db_clock.advance(timedelta(hours=2))
    assert kit.state(app, kit.send(app, "a@example.org")) == "queued"
    assert kit.one(hand.connection, purge) == 1
    assert listed(owner) == [("b@example.org", "", "bounced")]


def test_who_unsubscribed_from_one_stream_gets_the_mail_of_others(app, owner):
    owner.execute("select pgmail.suppress('a@example.org', 'unsubscribed', null, 'broadcast')")
    assert kit.state(app, kit.send(app, "a@example.org", stream="broadcast")) == "suppressed"
    assert kit.state(app, kit.send(app, "a@example.org", stream="transactional")) == "queued"
