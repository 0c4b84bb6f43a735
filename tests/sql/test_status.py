"""status, trace and why: every state is told, by the email's id and by the recipient's."""

import re
from datetime import timedelta

import psycopg
import pytest

from tests.sql import kit
from tests.sql.kit import Refusal

pytestmark = pytest.mark.one_server

# What why says of an email in each state; the address stands before it.
WHY = {
    "scheduled": "is scheduled for ",
    "queued": "is due since ",
    "sending": "is being sent by worker ",
    "deferred": "waits until ",
    "held": "is held: someone should look",
    "sent": "was sent at ",
    "bounced": "bounced at ",
    "suppressed": "was not sent: the address is suppressed",
    "expired": "expired at ",
    "cancelled": "was cancelled at ",
    "dead": "is a dead letter since ",
}
PHASE = {"sending": "processing", "sent": "sent"} | dict.fromkeys(
    ("scheduled", "queued", "deferred", "held"), "queued"
)


@pytest.mark.parametrize("state", WHY)
def test_every_state_is_told_by_both_ids(db_clock, app, owner, hand, state):
    if state == "suppressed":
        owner.execute("select pgmail.suppress('ada@example.org')")
    later = (
        {"scheduled_at": (db_clock.now() + timedelta(hours=1)).isoformat()} if state == "scheduled" else {}
    )
    mail = kit.send(app, **later)
    if state == "cancelled":
        app.execute("select pgmail.cancel(%s, 'no need')", [mail])
    elif state == "sending":
        hand.claim()
    elif state not in {"scheduled", "queued", "suppressed"}:
        hand.settle(
            hand.claim(),
            state,
            delay=600,
            code=451,
            enhanced="4.7.1",
            reply="greylisted",
            reason="someone should look",
        )
    (recipient,) = kit.recipients(app, mail)
    for one in (mail, recipient):
        (row,) = kit.rows(
            app, "select recipient_id, message_id, address, role, phase, state from pgmail.status(%s)", [one]
        )
        assert row == (recipient, mail, "ada@example.org", "to", PHASE.get(state, "failed"), state)
        why = kit.one(app, "select pgmail.why(%s)", [one])
        assert why.startswith("ada@example.org " + WHY[state])
        trace = kit.rows(app, "select type, at from pgmail.trace(%s)", [one])
        assert trace[0][0] == ("email.scheduled" if state == "scheduled" else "email.queued")
        assert [at for _, at in trace] == sorted(at for _, at in trace)
    if state in {"deferred", "sent", "bounced"}:
        assert "451 4.7.1 greylisted" in why
        assert kit.rows(app, "select code, enhanced, reply from pgmail.status(%s)", [mail]) == [
            (451, "4.7.1", "greylisted")
        ]


def test_a_deferral_without_an_answer_says_what_happened_instead(app, hand):
    mail = kit.send(app)
    hand.settle(hand.claim(), "deferred", delay=60, error="connection refused")
    assert kit.one(app, "select pgmail.why(%s)", [mail]).endswith("connection refused")


def test_recipients_come_in_the_order_of_to_cc_and_bcc(app):
    mail = kit.send(app, ["z@example.org", "a@example.org"], cc="m@example.net", bcc=["b@example.com"])
    found = kit.rows(app, "select address, role from pgmail.status(%s)", [mail])
    assert found == [
        ("z@example.org", "to"),
        ("a@example.org", "to"),
        ("m@example.net", "cc"),
        ("b@example.com", "bcc"),
    ]
    assert len(kit.one(app, "select pgmail.why(%s)", [mail]).splitlines()) == 4


def test_reason_is_empty_while_there_is_none(app):
    mail = kit.send(app)
    assert kit.rows(app, "select reason, code, reply from pgmail.status(%s)", [mail]) == [(None, None, None)]


@pytest.mark.parametrize("call", ["status", "trace", "why"])
@pytest.mark.parametrize(
    "mail", ["01999999-9999-7999-8999-999999999999", "00000000-0000-0000-0000-000000000000"]
)
def test_an_unknown_id_is_not_found(app, call, mail):
    with pytest.raises(psycopg.Error) as refused:
        app.execute(f"select pgmail.{call}(%s)", [mail])
    assert kit.refusal(refused.value) == Refusal("not_found", "/id", "PM404")


def test_why_names_what_mail_waits_for(db_clock, app, owner, hand):
    def why():
        return kit.one(app, "select pgmail.why(%s)", [mail]).removeprefix("ada@example.org ")

    mail = kit.send(app)
    assert why().startswith("is due since ")
    db_clock.advance(60)
    assert why().startswith("waits: no worker is alive since ")
    hand.connection.execute("select pgmail.worker_stop_v1(%s)", [hand.epoch])
    assert re.fullmatch(r"waits: no worker is alive since .* UTC, when worker \d+ on host was stopped", why())
    owner.execute("select pgmail.relay_state_v1('default', 'away', 'connection refused', 30)")
    assert "relay default is away" in why()
    assert "connection refused; next try at " in why()
    owner.execute("select pgmail.pause_relay('default', 'maintenance')")
    assert why().startswith("waits: relay default is paused by pgmail_owner since ")
    owner.execute("select pgmail.resume_relay('default')")
    assert why().endswith("was stopped")


def test_why_says_that_a_worker_is_gone_or_an_attempt_in_doubt(app, owner, hand, other):
    mail = kit.send(app)
    hand.claim()
    owner.execute("delete from pgmail.worker where epoch = %s", [hand.epoch])
    assert "that worker is gone" in kit.one(app, "select pgmail.why(%s)", [mail])
    other.rescue(hand.epoch)
    assert "an earlier attempt is in doubt" in kit.one(app, "select pgmail.why(%s)", [mail])
