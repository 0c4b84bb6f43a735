"""What becomes of mail, with a whole worker, a real database and a real SMTP server."""

import asyncio
import time
from datetime import UTC, datetime, timedelta

import pytest

from pgmail.domain import ids
from pgmail.domain.reply import Phase, Reply, Result
from pgmail.worker import sender
from tests.sql.kit import differences, events, one, recipients, rows, send, send_many, state, states, stream
from tests.waiting import eventually
from tests.worker.kit import Scripted, doubts, header, leased, settled


async def test_mail_is_sent_and_the_reply_stands_in_its_outcome(app, owner, crew, sink):
    await crew.hire()
    mail = send(app, "Ada <ada@example.org>", text="A body")
    await sink.wait_for(1)
    await eventually(lambda: state(app, mail) == "sent")
    (code, reply, host), *_ = rows(owner, "select code, reply, remote_host from pgmail.outcome")
    assert code == 250
    assert reply
    assert host.startswith("127.0.0.1")
    (stored,) = sink.accepted
    assert header(stored.source, "Subject") == "Hi"
    assert header(stored.source, "To") == "Ada <ada@example.org>"
    assert b"A body" in stored.source
    assert events(app, mail) == ["queued", "sending", "sent"]
    assert differences(owner) == [0]


async def test_four_recipients_of_which_two_are_refused_have_four_honest_states(app, owner, crew, sink):
    people = ["ada@example.org", "bounce.bob@example.org", "eve@example.net", "blocked.dan@example.net"]
    mail = send(app, people)
    await crew.hire()
    await eventually(lambda: states(app, mail) == ["sent", "bounced", "sent", "bounced"])
    refused = dict(rows(owner, "select site, code from pgmail.outcome where state = 'bounced'"))
    assert refused == {"example.org": 550, "example.net": 550}
    assert {stored.recipient for stored in sink.accepted} == {"ada@example.org", "eve@example.net"}
    assert len(sink.by_message_id) == 1  # one email: one Message-ID for all
    assert differences(owner) == [0]


async def test_mail_that_is_deferred_comes_back_after_its_backoff_and_is_sent(app, owner, crew, sink):
    stream(owner, "transactional", retry_base_seconds=0.3, retry_jitter=0)
    await crew.hire()
    mail = send(app, "deferonce.ada@example.org")
    await eventually(lambda: state(app, mail) == "sent")
    assert events(app, mail) == ["queued", "sending", "deferred", "sending", "sent"]
    told = rows(
        owner,
        "select at, attempt, code from pgmail.event where type in ('email.deferred', 'email.sent') order by at",
    )
    assert [row[1:] for row in told] == [(1, 451), (2, 250)]
    assert told[1][0] - told[0][0] >= timedelta(seconds=0.3)
    assert sum(sink.by_message_id.values()) == 1


async def test_mail_whose_attempts_are_exhausted_is_a_dead_letter(app, owner, crew):
    stream(owner, "transactional", retry_base_seconds=0.05, retry_factor=1, retry_jitter=0, max_attempts=3)
    await crew.hire()
    mail = send(app, "defer.ada@example.org")
    await eventually(lambda: state(app, mail) == "dead")
    reason, attempts, code = rows(owner, "select reason, attempts, code from pgmail.dead_letter")[0]
    assert (reason, attempts, code) == ("attempts_exhausted", 3, 451)
    assert differences(owner) == [0]


async def test_a_template_that_fails_is_a_dead_letter_with_the_rendered_error(app, owner, crew, sink):
    await crew.hire()
    mail = send(app, subject="Hi", text="one\n{{ price + 1 }}", variables={"price": "much"})
    good = send(app, text="{{ price }}", variables={"price": "much"})
    await eventually(lambda: state(app, mail) == "dead" and state(app, good) == "sent")
    reason, error, attempts = rows(owner, "select reason, error, attempts from pgmail.dead_letter")[0]
    assert reason == "template"
    assert error.startswith("text, line 2: ")
    assert attempts == 0
    assert sink.total == 1


async def test_an_address_suppressed_after_the_enqueue_gets_nothing(app, owner, crew, sink):
    mail = send(app, "ada@example.org")
    one(owner, "select pgmail.suppress('ada@example.org', 'complained')")
    await crew.hire()
    await eventually(lambda: state(app, mail) == "suppressed")
    assert one(owner, "select reason from pgmail.outcome") == "complained"
    assert sink.total == 0
    assert differences(owner) == [0]


async def test_expired_mail_is_not_sent(app, owner, crew, sink):
    soon = datetime.now(UTC) + timedelta(seconds=0.3)
    mail = send(app, expires_at=soon.isoformat())
    await eventually(lambda: datetime.now(UTC) > soon)
    await crew.hire()
    await eventually(lambda: state(app, mail) == "expired")
    assert sink.total == 0
    assert differences(owner) == [0]


async def test_expired_mail_ends_though_nobody_may_claim_it(app, owner, crew, sink):
    owner.execute("select pgmail.pause_relay('default', 'a holiday')")
    await crew.hire()
    mail = send(app, expires_at=(datetime.now(UTC) + timedelta(seconds=0.3)).isoformat())
    await eventually(lambda: state(app, mail) == "expired")
    assert sink.total == 0


async def test_mail_cancelled_before_a_claim_is_not_sent(app, owner, crew, sink):
    mail = send(app)
    answer = one(app, "select pgmail.cancel(%s, 'changed my mind')", [mail])
    assert answer["status"] == "cancelled"
    await crew.hire()
    other = send(app)
    await eventually(lambda: state(app, other) == "sent")
    assert state(app, mail) == "cancelled"
    assert sink.total == 1


async def test_mail_on_the_wire_cannot_be_cancelled_and_says_so(app, crew):
    transport = Scripted()
    transport.gate = asyncio.Event()
    await crew.hire({"default": transport})
    mail = send(app)
    await eventually(lambda: transport.begun)
    assert one(app, "select pgmail.cancel(%s)", [mail])["status"] == "too_late"
    transport.gate.set()
    await eventually(lambda: state(app, mail) == "sent")


async def test_scheduled_mail_is_sent_when_due_and_not_before(app, owner, crew, sink):
    await crew.hire()
    other = send(app)
    await eventually(lambda: state(app, other) == "sent")
    due = datetime.now(UTC) + timedelta(seconds=2)
    mail = send(app, scheduled_at=due.isoformat())
    assert state(app, mail) == "scheduled" or datetime.now(UTC) >= due
    await eventually(lambda: state(app, mail) == "sent")
    assert one(owner, "select at from pgmail.outcome where message_id = %s", [mail]) >= due
    assert 0 <= sink.accepted[-1].at - due.timestamp() < 5


async def test_mail_that_waited_long_has_all_its_age_left_at_its_first_attempt(app, owner, crew):
    """Its age counts from its first attempt, not from when it was written or due."""
    stream(owner, "brief", max_age_seconds=2, retry_base_seconds=0.1, retry_jitter=0)
    mail = send(app, "deferonce.ada@example.org", stream="brief")
    owner.execute("update pgmail.queue set due_at = pgmail.now()")
    # As if it had been written an hour ago, for now.
    old = ids.make(datetime.now(UTC) - timedelta(hours=1))
    for table, column in (("message", "id"), ("recipient", "message_id"), ("queue", "message_id")):
        owner.execute(f"update pgmail.{table} set {column} = %s", [old])
    assert mail != old
    await crew.hire()
    await eventually(lambda: settled(owner) == {"sent": 1})
    assert one(owner, "select attempts from pgmail.outcome") == 2


async def test_a_broken_connection_before_the_end_of_data_is_an_attempt_and_no_doubt(app, owner, crew, sink):
    stream(owner, "transactional", retry_base_seconds=0.05, retry_factor=1, retry_jitter=0, max_attempts=2)
    await crew.hire()
    mail = send(app, "reset.ada@example.org")
    await eventually(lambda: state(app, mail) == "dead")
    assert doubts(owner) == 0
    assert sink.total == 0


async def test_a_lost_reply_on_a_stream_that_resends_is_told_and_sent_again_with_the_same_id(
    app, owner, crew, sink
):
    stream(owner, "transactional", retry_base_seconds=0.05, retry_factor=1, retry_jitter=0, max_attempts=2)
    await crew.hire()
    mail = send(app, "drop.ada@example.org")
    await eventually(lambda: state(app, mail) == "dead")  # the sink never answers this one
    assert sink.total == 2
    assert len(sink.by_message_id) == 1
    assert sink.accepted[0].source == sink.accepted[1].source
    assert doubts(owner, recipients(app, mail)[0]) == 2
    told = events(app, mail)
    assert told.count("in_doubt") == 2
    assert differences(owner) == [0]


async def test_a_lost_reply_on_a_stream_that_holds_waits_for_a_person(app, owner, crew, sink):
    stream(owner, "invoices", on_doubt="hold")
    await crew.hire()
    mail = send(app, "drop.ada@example.org", stream="invoices")
    await eventually(lambda: state(app, mail) == "held")
    assert doubts(owner) == 1
    assert "in doubt" in one(app, "select pgmail.why(%s)", [mail])
    other = send(app)
    await eventually(lambda: state(app, other) == "sent")
    assert sink.total == 2
    assert state(app, mail) == "held"
    assert differences(owner) == [0]


async def test_personal_mail_to_two_hundred_is_two_hundred_emails(app, owner, crew, sink):
    people = [{"address": f"p{n}@example.org", "variables": {"name": f"Person {n}"}} for n in range(200)]
    send(app, people, mode="personal", subject="Hi {{ name }}", text="Dear {{ name }}", variables={})
    await crew.hire()
    await sink.wait_for(200, seconds=20)
    assert len(sink.by_message_id) == 200
    for stored in sink.accepted:
        n = stored.recipient[1:].partition("@")[0]
        assert header(stored.source, "To") == stored.recipient
        assert header(stored.source, "Subject") == f"Hi Person {n}"
        assert f"Dear Person {n}\r\n".encode() in stored.source
    await eventually(lambda: settled(owner) == {"sent": 200})


async def test_three_hundred_lanes_all_get_their_turn(app, owner, crew, sink):
    send_many(
        app,
        [
            {"from": "a@example.com", "to": f"x@d{n}.example.org", "subject": "s", "text": "t"}
            for n in range(300)
        ],
    )
    assert one(owner, "select count(distinct lane) from pgmail.queue") == 300
    await crew.hire()
    await sink.wait_for(300, seconds=20)
    await eventually(lambda: settled(owner) == {"sent": 300})
    assert set(sink.by_message_id.values()) == {1}


async def test_two_workers_share_the_queue_and_send_no_copies(app, owner, crew, sink):
    for n in range(5):
        send_many(
            app,
            [
                {"from": "a@example.com", "to": f"x{i}@d{n}.example.org", "subject": "s", "text": "t"}
                for i in range(60)
            ],
        )
    await crew.hire()
    await crew.hire()
    await sink.wait_for(300, seconds=20)
    await eventually(lambda: settled(owner) == {"sent": 300})
    assert set(sink.by_message_id.values()) == {1}
    assert one(owner, "select count(distinct worker) from pgmail.event where type = 'email.sent'") == 2
    assert differences(owner) == [0]
    assert leased(owner) == 0


async def test_a_message_whose_content_cannot_be_read_is_a_dead_letter_and_keeps_nobody_waiting(
    app, owner, crew
):
    bad, good = send(app), send(app)
    owner.execute("update pgmail.message set content = 'no JSON' where id = %s", [bad])
    await crew.hire()
    await eventually(lambda: (state(app, bad), state(app, good)) == ("dead", "sent"))
    assert one(owner, "select reason from pgmail.dead_letter") == "poison"


async def test_mail_of_a_stream_that_somebody_deleted_goes_by_the_defaults(app, owner, crew):
    stream(owner, "gone")
    mail = send(app, stream="gone")
    owner.execute("delete from pgmail.stream where name = 'gone'")
    await crew.hire()
    await eventually(lambda: state(app, mail) == "sent")


@pytest.mark.parametrize("lean", [True, False], ids=["lean", "full"])
async def test_a_lean_stream_tells_no_sending_event(app, owner, crew, lean):
    stream(owner, "news", trace="lean" if lean else "full")
    await crew.hire()
    mail = send(app, stream="news")
    await eventually(lambda: state(app, mail) == "sent")
    assert ("sending" in events(app, mail)) is not lean


async def test_an_address_suppressed_while_its_mail_waits_in_a_worker_gets_nothing(
    app, owner, crew, sink, monkeypatch
):
    """Its content is loaded, and it waits there for a place on the wire."""
    monkeypatch.setattr(sender, "LOOKED_UP_SECONDS", 0.2)
    slow = Scripted()
    slow.gate = asyncio.Event()
    first = send(app, "first@example.org")
    await crew.hire({"default": slow}, concurrency=1)
    await eventually(lambda: slow.begun == 1)
    mail = send(app, "ada@example.org")
    await eventually(lambda: state(app, mail) == "sending")
    owner.execute("select pgmail.suppress('ada@example.org', 'complained')")
    at = time.monotonic()
    await eventually(lambda: time.monotonic() - at > 0.3)
    slow.gate.set()
    await eventually(lambda: state(app, mail) == "suppressed")
    assert state(app, first) == "sent"
    assert [envelope.recipient for envelope in slow.delivered] == ["first@example.org"]


@pytest.mark.parametrize("waits", ["scheduled", "deferred", "paused", "held"])
async def test_a_suppression_stops_mail_whatever_it_waits_for(app, owner, crew, db_clock, waits):
    transport = Scripted(*[Result(phase=Phase.RCPT, reply=Reply(450, "later"))] * (waits == "deferred"))
    later = {"scheduled_at": (db_clock.now() + timedelta(hours=1)).isoformat()}
    if waits == "paused":
        one(owner, "select pgmail.pause_mail('stream', 'transactional', 'because', null, false)")
    mail = send(app, "ada@example.org", **(later if waits == "scheduled" else {}))
    if waits == "held":
        one(owner, "select pgmail.hold(%s)", [mail])
    await crew.hire({"default": transport})
    await eventually(lambda: state(app, mail) == {"paused": "queued"}.get(waits, waits))
    owner.execute("select pgmail.suppress('ada@example.org', 'complained')")
    if waits == "paused":
        one(owner, "select pgmail.resume_mail('stream', 'transactional', 'go on', false)")
    elif waits == "held":
        one(owner, "select pgmail.release(%s)", [mail])
    else:
        db_clock.advance(timedelta(hours=2))
    await eventually(lambda: state(app, mail) == "suppressed")
    assert len(transport.delivered) == (waits == "deferred")
