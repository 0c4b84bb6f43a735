"""Limits and suppressions: they delay, hold or settle mail; they fail a send only where its sender asked for that."""

from datetime import timedelta

import psycopg
import pytest

from tests.sql import kit
from tests.sql.kit import Refusal

pytestmark = pytest.mark.one_server


@pytest.fixture
def full(owner):
    """A stream whose limit is reached."""
    return kit.stream(owner, "full", max_queued=0)


def test_a_reached_limit_delays_by_default_and_does_not_abort(app, hand, full, db_clock):
    mail = kit.send(app, stream=full)
    assert kit.state(app, mail) == "queued"
    assert kit.events(app, mail) == ["queued", "delayed"]
    assert kit.one(app, "select pgmail.why(%s)", [mail]).startswith(
        "ada@example.org waits for a limit until "
    )
    assert hand.claim() == []
    db_clock.advance(61)
    assert len(hand.claim()) == 1


def test_a_reached_limit_holds_where_asked_until_a_person_releases(db, app, hand, full):
    mail = kit.send(app, stream=full, on_limit="hold")
    assert kit.state(app, mail) == "held"
    assert kit.events(app, mail) == ["queued", "held"]
    assert hand.claim() == []
    assert kit.one(db.connect("admin"), "select pgmail.retry(%s, 'room again')", [mail]) == 1
    assert [lease.message_id for lease in hand.claim()] == [mail]


def test_a_reached_limit_errors_where_asked(app, owner, full):
    with pytest.raises(psycopg.Error) as refused:
        kit.send(app, stream=full, on_limit="error")
    assert kit.refusal(refused.value) == Refusal("limit_reached", "/stream", "PM429")
    assert kit.count(owner, "message") == 0


def test_a_limit_counts_what_waits_by_folded_tallies(app, owner, hand):
    name = kit.stream(owner, "two", max_queued=2)
    for n in range(2):
        assert kit.events(app, kit.send(app, f"u{n}@example.org", stream=name)) == ["queued"]
    owner.execute("select pgmail.fold_tallies_v1()")
    assert kit.events(app, kit.send(app, stream=name)) == ["queued", "delayed"]
    hand.settle(hand.claim(), stream=name)
    owner.execute("select pgmail.fold_tallies_v1()")
    assert kit.events(app, kit.send(app, stream=name)) == ["queued"]


def test_mail_for_later_stays_scheduled_on_a_full_stream(app, full, db_clock):
    at = db_clock.now() + timedelta(hours=1)
    mail = kit.send(app, stream=full, scheduled_at=at.isoformat())
    assert kit.rows(app, "select state, due_at from pgmail.status(%s)", [mail]) == [("scheduled", at)]


def test_mail_for_later_that_is_held_by_a_limit_is_scheduled_again_by_retry(db, app, full, db_clock):
    at = db_clock.now() + timedelta(hours=1)
    mail = kit.send(app, stream=full, scheduled_at=at.isoformat(), on_limit="hold")
    assert kit.state(app, mail) == "held"
    assert kit.one(db.connect("admin"), "select pgmail.retry(%s)", [mail]) == 1
    assert kit.rows(app, "select state, due_at from pgmail.status(%s)", [mail]) == [("scheduled", at)]


def test_in_a_batch_a_limit_with_error_refuses_that_item_alone(app, full):
    items = [kit.body(stream=full, on_limit=word) for word in ("error", "delay", "hold")]
    answer = kit.send_many(app, items, strict=False)
    assert [row[2] for row in answer] == ["limit_reached", None, None]


def test_a_suppressed_address_settles_as_suppressed_and_the_others_go(app, owner, hand):
    owner.execute("select pgmail.suppress('Gone@example.org', 'bounced', 'mx said 550')")
    mail = kit.send(app, ["gone@EXAMPLE.org", "here@example.org"])
    assert kit.states(app, mail) == ["suppressed", "queued"]
    assert len(hand.claim()) == 1
    gone = kit.recipients(app, mail)[0]
    assert kit.events(app, gone) == ["queued", "suppressed"]
    assert kit.differences(owner) == [0]


def test_a_suppression_of_one_stream_leaves_the_others_alone_and_may_expire(app, owner, db_clock):
    until = db_clock.now() + timedelta(days=1)
    owner.execute("select pgmail.suppress('a@example.org', 'unsubscribed', null, 'broadcast', %s)", [until])
    assert kit.state(app, kit.send(app, "a@example.org")) == "queued"
    assert kit.state(app, kit.send(app, "a@example.org", stream="broadcast")) == "suppressed"
    db_clock.advance(timedelta(days=2))
    assert kit.state(app, kit.send(app, "a@example.org", stream="broadcast")) == "queued"


def test_unsuppress_lets_mail_go_again(app, owner):
    owner.execute("select pgmail.suppress('a@example.org')")
    assert kit.one(owner, "select pgmail.unsuppress('A@example.org')")
    assert not kit.one(owner, "select pgmail.unsuppress('a@example.org')")
    assert kit.state(app, kit.send(app, "a@example.org")) == "queued"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("p_stream => 'nosuch'", "unknown_stream"),
        ("p_stream => repeat('x', 9000)", "unknown_stream"),
        ("p_source => repeat('x', 1001)", "invalid_source"),
        ("p_expires_at => 'infinity'", "time_too_far"),
        ("p_expires_at => now() - interval '1 second'", "time_in_past"),
    ],
)
def test_a_suppression_that_could_not_be_kept_or_read_back_is_refused(owner, arguments, code):
    with pytest.raises(psycopg.Error) as refused:
        owner.execute(f"select pgmail.suppress('a@example.org', {arguments})")
    assert kit.refusal(refused.value).code == code


def test_a_stream_cannot_name_a_relay_that_nobody_has(owner):
    with pytest.raises(psycopg.Error) as refused:
        kit.stream(owner, "lost", relay="nosuch")
    assert kit.refusal(refused.value).code == "unknown_relay"
