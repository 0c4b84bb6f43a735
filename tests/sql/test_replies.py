"""Rules for replies in SQL: the same answers as in Python, and what follows from bounces and from refusals."""

import json
from datetime import timedelta

import psycopg
import pytest

from pgmail.domain.replies import FOLD_FROM, fold
from pgmail.shaping.rulebook import book
from tests.replies import corpus
from tests.sql import kit

ODD = [
    (None, None, None, ""),
    (550, None, None, ""),
    (550, None, "rcpt", "no"),
    (None, "5.1.1", None, "<a@b.example> gone"),
    (
        None,
        None,
        None,
        "550-5.1.1 The email account that you tried to\n550-5.1.1 reach does not\r\n550 5.1.1 exist.",
    ),
    (451, "4.7.1", "dot", "x" * 5000 + " greylisted"),
    (554, None, "dot", "Your IP 5.7.1.2 talks of 5.7.1."),
    (552, "#5.2.2", None, "mail box “FULL”"),
    (521, None, "rcpt", "bye"),
]


def test_python_and_sql_agree_on_the_whole_corpus(owner):
    asked = [(r["code"], r["enhanced"], r.get("phase"), r["text"]) for r in corpus()] + ODD
    found = kit.rows(
        owner,
        "select c.reason, c.class, c.blame, c.suppress, c.follows, c.slow, c.alert, c.rule, "
        "pgmail.fold_reply(r->>'text') "
        "from jsonb_array_elements(%s::jsonb) with ordinality x(r, n) cross join lateral "
        "pgmail.classify((r->>'code')::integer, r->>'enhanced', r->>'phase', r->>'text') c order by n",
        [json.dumps([dict(zip(("code", "enhanced", "phase", "text"), one, strict=True)) for one in asked])],
    )
    assert len(found) == len(asked)
    for one, row in zip(asked, found, strict=True):
        meaning = book().classify(*one)
        why = meaning.reason
        expected = (
            why.name,
            why.class_,
            why.blame,
            why.suppress,
            why.follows,
            why.slow,
            why.alert,
            meaning.rule,
        )
        assert row[:8] == expected, one
        assert row[8] == fold(one[3])


def test_every_letter_is_folded_alike(owner):
    text = "x" + FOLD_FROM + "x"
    assert kit.one(owner, "select pgmail.fold_reply(%s)", [text]) == fold(text)


def test_every_pattern_is_one_of_postgresql(owner):
    """Those that no reply of the corpus reaches, too."""
    count = kit.one(owner, "select count(*) from pgmail.reply_pattern where 'x' ~ pattern or 'x' !~ pattern")
    assert count == len(book().table()["patterns"])


def test_an_upgrade_brings_the_rules_of_the_program(owner):
    assert kit.count(owner, "reply_rule") == len(book().rules)
    assert kit.count(owner, "reply_reason") == len(book().reasons)


def bounce(hand, lease, **more):
    facts = {
        "code": 550,
        "enhanced": "5.1.1",
        "reason": "recipient-gone",
        "reply": "no such user",
        "suppress": True,
    }
    answer = hand.settle(lease, "bounced", **{**facts, **more})
    hand.connection.execute("select pgmail.suppress_bounced_v1()")
    return answer


def sent_to(app, hand, address="gone@example.org", **more):
    kit.send(app, address, **more)
    hand.fold()
    (lease,) = hand.claim()
    return lease


def suppressed(owner):
    return kit.rows(
        owner, "select address, stream, reason, source, created_by, expires_at from pgmail.suppression"
    )


def test_a_bounce_that_says_so_suppresses_the_address_for_ever(app, owner, hand):
    bounce(hand, sent_to(app, hand))
    assert suppressed(owner) == [
        ("gone@example.org", "", "bounced", "550 5.1.1 recipient-gone", "pgmail", None)
    ]
    later = kit.send(app, "gone@example.org")
    assert kit.state(app, later) == "suppressed"


def test_a_bounce_that_does_not_say_so_suppresses_nobody(app, owner, hand):
    bounce(hand, sent_to(app, hand), suppress=False)
    assert suppressed(owner) == []


def test_a_fenced_out_bounce_suppresses_nobody(app, owner, hand, other):
    lease = sent_to(app, hand)
    bounce(other, lease)
    assert suppressed(owner) == []


def test_a_stream_may_have_it_switched_off(app, owner, hand):
    kit.stream(owner, "transactional", suppress_bounced=False)
    bounce(hand, sent_to(app, hand))
    assert suppressed(owner) == []


def test_an_operators_suppression_stays_as_it_is(app, owner, hand):
    lease = sent_to(app, hand)
    owner.execute("select pgmail.suppress('gone@example.org', 'complained')")
    bounce(hand, lease)
    assert [row[2] for row in suppressed(owner)] == ["complained"]


def settle_bounce(hand, lease):
    return hand.settle(lease, "bounced", code=550, enhanced="5.1.1", reason="recipient-gone", suppress=True)


def suppress_noted(hand):
    return kit.rows(hand.connection, "select looked, busy from pgmail.suppress_bounced_v1()")


@pytest.mark.parametrize("act", ["suppress", "unsuppress", "erase"])
def test_a_bounce_settles_while_another_transaction_has_its_address_in_hand(db, app, owner, hand, act):
    lease = sent_to(app, hand)
    if act != "suppress":
        owner.execute("select pgmail.suppress('gone@example.org', 'manual')")
    elsewhere = sent_to(app, hand, "else@example.org")
    hand.connection.execute("set statement_timeout = '5s'")
    with db.connect(autocommit=False) as holder:
        text = f"select pgmail.{act}('gone@example.org'{', reason => $$gdpr$$' if act == 'erase' else ''})"
        holder.execute(text)
        assert settle_bounce(hand, [lease, elsewhere]) == ["settled", "settled"]
        assert suppress_noted(hand) == [(2, 1)]
        assert "else@example.org" in {row[0] for row in suppressed(owner)}
        assert suppress_noted(hand) == [(1, 1)]
        holder.commit()
    assert suppress_noted(hand) == [(1, 0)]
    assert suppress_noted(hand) == [(0, 0)]
    # Erased while it was being sent: too late for this mail, and its address is as new until the erasure is run again.
    expected = {"suppress": "manual", "unsuppress": "bounced", "erase": "bounced"}[act]
    assert [row[2] for row in suppressed(owner) if row[0] == "gone@example.org"] == [expected]


def test_addresses_in_hand_do_not_keep_others_off_the_list(db, app, owner, hand):
    for n in range(6):
        assert settle_bounce(hand, sent_to(app, hand, f"a{n}@example.org")) == ["settled"]
    with db.connect(autocommit=False) as holder:
        for n in range(5):
            holder.execute("select pgmail.suppress(%s)", [f"a{n}@example.org"])
        assert suppress_noted(hand) == [(6, 6)]  # three were enough for once
        assert suppress_noted(hand)[0][1] == 5
        assert [row[0] for row in suppressed(owner)] == ["a5@example.org"]
        holder.rollback()
    assert suppress_noted(hand) == [(5, 0)]
    assert len(suppressed(owner)) == 6


def test_a_frozen_worker_does_not_keep_the_rows_that_it_settles(app, hand):
    lease = sent_to(app, hand)
    with hand.connection.transaction():
        hand.settle(lease)
        assert kit.one(hand.connection, "show idle_in_transaction_session_timeout") == "3s"


def test_history_can_be_classified_again(app, owner, hand):
    bounce(
        hand,
        sent_to(app, hand),
        code=552,
        enhanced="5.2.2",
        reply="mailbox is full",
        reason="wrong",
        suppress=False,
    )
    assert kit.rows(owner, "select reason, class, suppress, detail from pgmail.refusal") == [
        ("mailbox-full", "soft", False, "wrong")
    ]


def slow(connection, site="gmail.com", reason="blocked: 421 go away"):
    return kit.one(connection, "select pgmail.slow_site_v1(1, %s, %s)", [site, reason])


def now(owner):
    return kit.one(owner, "select pgmail.now()")


def test_a_site_is_paused_for_a_minute_and_longer_each_time(app, owner, hand, db_clock):
    db_clock.freeze()
    worker = hand.connection
    lasted = []
    for _ in range(9):
        until = slow(worker)
        assert slow(worker) is None  # once for all workers
        lasted.append((until - now(owner)).total_seconds())
        db_clock.advance(timedelta(seconds=lasted[-1] + 1))
    assert lasted == [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]
    db_clock.advance(timedelta(hours=3))
    assert (slow(worker) - now(owner)).total_seconds() == 60


def test_a_slowed_site_is_an_ordinary_pause(app, owner, hand):
    slow(hand.connection)
    sent = kit.send(app, "ada@gmail.com")
    assert "site gmail.com is paused by pgmail" in kit.one(app, "select pgmail.why(%s)", [sent])
    assert kit.rows(owner, "select actor, action, object from pgmail.audit where actor = 'pgmail'") == [
        ("pgmail", "site.pause", "gmail.com")
    ]
    owner.execute("select pgmail.resume_mail('site', 'gmail.com', 'they answered')")
    assert kit.count(owner, "pause") == 0


def test_an_operators_pause_is_left_alone(owner, hand):
    owner.execute("select pgmail.pause_mail('site', 'gmail.com', 'mine')")
    assert slow(hand.connection) is None
    assert kit.one(owner, "select reason from pgmail.pause") == "mine"


@pytest.mark.parametrize("role", ["producer", "reader", "api"])
def test_only_workers_slow_sites(db, role):
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        slow(db.connect(role))
