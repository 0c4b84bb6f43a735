"""Test email reaches nobody; on a staging installation nor does any other, but for those who may get it."""

import asyncio
import json
from typing import Any

import pytest

from pgmail.config import Settings
from pgmail.sandbox.inbox import _parse
from pgmail.worker.staging import NOT_ALLOWED, ORIGINAL, Staging
from tests.sql.kit import (
    NOBODY,
    Hand,
    body,
    differences,
    events,
    one,
    rows,
    send,
    send_many,
    state,
    states,
    stream,
)
from tests.waiting import eventually
from tests.worker.kit import AWAY, READY, Scripted, header, leased


def a_test(app: Any, to: Any = "ada@example.org", **more: Any) -> Any:
    return send(app, to, test=True, **more)


async def test_a_test_goes_through_all_states_and_to_nobody(app, owner, crew, sink):
    await crew.hire()
    test = a_test(app, ["ada@example.org", "bob@example.net"], text="{{ x }}", variables={"x": 1})
    real = send(app, "eve@example.org")
    await eventually(lambda: states(app, test) == ["sent", "sent"] and state(app, real) == "sent")
    assert [mail.recipient for mail in sink.accepted] == ["eve@example.org"]
    assert {"queued", "sending", "sent"} == set(events(app, test))
    told = rows(
        owner,
        "select distinct relay, site, code, reply, reason, remote_host from pgmail.outcome where message_id = %s",
        [test],
    )
    assert told == [("test:", "test:", 250, "test: recorded, not sent", None, None)]
    assert rows(app, "select distinct reason from pgmail.status(%s)", [test]) == [
        ("a test email: it goes to the sandbox only",)
    ]
    assert "a test, for the sandbox only" in one(app, "select detail from pgmail.trace(%s) limit 1", [test])
    assert "(a test email, for the sandbox only)" in one(app, "select pgmail.why(%s)", [test])
    assert rows(
        owner, "select distinct detail from pgmail.event where type = 'email.sent' and site = 'test:'"
    ) == [("a test: not sent",)]
    assert differences(owner) == [0]


async def test_neither_a_relay_that_is_away_nor_a_limit_nor_its_pause_stops_a_test(app, owner, crew):
    owner.execute("select pgmail.set_limit('relay', 'default', 1, 3600, null, 0, null)")
    owner.execute("select pgmail.set_limit('tenant', 'default', 1, 3600, null, 0, null)")
    owner.execute("select pgmail.pause_relay('default', 'for the night')")
    relay = Scripted(otherwise=AWAY, probes=[AWAY])
    await crew.hire({"default": relay})
    mails = [a_test(app, f"u{n}@example.org") for n in range(20)]
    await eventually(lambda: all(state(app, mail) == "sent" for mail in mails))
    assert one(owner, "select array_agg(name) from pgmail.relay") == ["default"]
    assert not rows(owner, "select from pgmail.bucket where last_at > '-infinity'")
    assert differences(owner) == [0]


async def test_a_test_on_a_stream_that_holds_needs_no_person(app, owner, crew, sink):
    stream(owner, "transactional", on_doubt="hold")
    await crew.hire()
    mail = a_test(app)
    await eventually(lambda: state(app, mail) == "sent")
    assert not sink.accepted


async def test_a_test_that_a_worker_died_with_twice_is_not_handed_to_a_relay_either(app, owner, crew, sink):
    mail = a_test(app)
    owner.execute("update pgmail.queue set rescues = 5")
    await crew.hire()
    await eventually(lambda: state(app, mail) == "sent")
    assert not sink.accepted


async def test_a_test_in_a_lane_of_real_mail_is_held_not_sent(app, owner, crew, sink):
    mail = a_test(app)
    lane = "pgmail.lane_id(1, 'transactional', 2, 'example.org')"
    owner.execute("delete from pgmail.lane_touch")
    owner.execute(f"update pgmail.queue set lane = {lane}")
    owner.execute(
        "insert into pgmail.lane (tenant_id, id, stream, priority, site)"
        f" values (1, {lane}, 'transactional', 2, 'example.org')"
    )
    await crew.hire()
    await eventually(lambda: state(app, mail) == "held")
    assert not sink.accepted


async def test_test_email_is_kept_in_a_folder_if_there_is_one(app, crew, tmp_path):
    await crew.hire(test_folder=str(tmp_path / "tests"))
    mail = a_test(app, "Ada <ada@example.org>", text="A body")
    await eventually(lambda: state(app, mail) == "sent")
    (file,) = (tmp_path / "tests").glob("*.eml")
    assert (_parse(file.read_bytes())["Delivered-To"], "A body" in file.read_text()) == (
        "ada@example.org",
        True,
    )
    assert file.name in one(app, "select reply from pgmail.status(%s)", [mail])


async def test_a_folder_that_cannot_be_written_keeps_no_test_waiting(app, crew, tmp_path):
    (tmp_path / "file").write_text("no folder")
    await crew.hire(test_folder=str(tmp_path / "file"))
    mail = a_test(app)
    await eventually(lambda: state(app, mail) == "sent")
    assert "not kept" in one(app, "select reply from pgmail.status(%s)", [mail])


def test_a_worker_of_before_gets_no_test_email(app, owner, db):
    hand = Hand(owner)
    for mail in (body("real@example.org"), body("test@example.org", test=True)):
        one(app, "select pgmail.send(%s)", [json.dumps(mail)])
    owner.execute("select pgmail.fold_touches_v1()")
    assert not any(lease.id in marked(owner) for lease in hand.claim_as_of_old())
    lanes = hand.lanes()
    old = rows(
        owner,
        "select id from pgmail.claim_v2(1, %s, %s, array['-infinity', '-infinity']::timestamptz[],"
        " array_fill(%s::uuid, array[2]), array[9, 9], array[true, true], array[true, true])",
        [hand.epoch, lanes, NOBODY],
    )
    assert old == []  # the first one has the real one by now
    assert {lease.id for lease in hand.claim()} == marked(owner)


def marked(owner: Any) -> set[Any]:
    found = rows(owner, "select id from pgmail.recipient where address = 'test@example.org'")
    return {id_ for (id_,) in found}


def test_batches_make_tests_of_those_that_say_so_and_no_domain_is_mapped_to_them(app, owner):
    send_many(
        app, [body("a@gmail.com", test=True), body("b@googlemail.com"), body("c@gmail.com", test=False)]
    )
    found = rows(
        owner,
        "select r.address, r.site, m.test from pgmail.recipient r join pgmail.message m on m.id = r.message_id"
        " order by 1",
    )
    assert found == [
        ("a@gmail.com", "test:", True),
        ("b@googlemail.com", "gmail.com", False),
        ("c@gmail.com", "gmail.com", False),
    ]
    with pytest.raises(Exception, match="site_domain_site_check"):
        owner.execute("insert into pgmail.site_domain values ('example.com', 'test:')")


# ------------------------------------------------------------------------------------------------ staging
async def test_a_redirect_takes_all_mail_and_names_who_it_was_for(app, owner, crew, sink):
    await crew.hire(redirect_to="qa@example.com", subject_prefix="[staging]")
    mail = send(app, ["Ada <ada@example.org>", "Bob@example.net"], subject="Hi")
    await eventually(lambda: states(app, mail) == ["sent", "sent"])
    assert [stored.recipient for stored in sink.accepted] == ["qa@example.com"] * 2
    assert {header(stored.source, ORIGINAL) for stored in sink.accepted} == {
        "ada@example.org",
        "Bob@example.net",
    }
    assert {header(stored.source, "Subject") for stored in sink.accepted} == {"[staging] Hi"}
    assert header(sink.accepted[0].source, "To") == "Ada <ada@example.org>, Bob@example.net"
    detail = one(owner, "select distinct detail from pgmail.event where type = 'email.sent'")
    assert detail == "staging: redirected to qa@example.com, subject led by '[staging] '"
    assert "all mail goes to qa@example.com" in one(
        owner, "select staging from pgmail.worker where program = 'worker'"
    )


async def test_a_bounce_of_the_redirect_suppresses_nobody(app, owner, crew, sink):
    await crew.hire(redirect_to="bounce.qa@example.com")
    mail = send(app, "ada@example.org")
    await eventually(lambda: state(app, mail) == "bounced")
    await asyncio.sleep(0)
    assert not rows(owner, "select from pgmail.bounced union all select from pgmail.suppression")


async def test_who_is_not_in_the_allow_list_gets_nothing_and_that_is_told(app, owner, crew, sink):
    await crew.hire(allowed_recipients="qa@example.com Example.ORG")
    mail = send(app, ["qa@example.com", "Ada@example.org", "eve@sub.example.org", "other@example.com"])
    await eventually(lambda: states(app, mail) == ["sent", "sent", "suppressed", "suppressed"])
    assert sorted(stored.recipient for stored in sink.accepted) == ["Ada@example.org", "qa@example.com"]
    reasons = rows(owner, "select distinct reason from pgmail.outcome where state = 'suppressed'")
    assert reasons == [(NOT_ALLOWED,)]
    assert f"eve@sub.example.org was not sent: it is {NOT_ALLOWED}" in one(
        app, "select pgmail.why(%s)", [mail]
    )
    assert not rows(owner, "select from pgmail.suppression")
    assert differences(owner) == [0]


async def test_limits_count_for_who_really_gets_the_mail(app, owner, crew):
    owner.execute("insert into pgmail.site_domain values ('qa.example', 'example.com')")
    owner.execute("select pgmail.set_limit('site', 'example.com', 1, 3600, null, 0, null)")
    relay = Scripted(probes=[READY])
    await crew.hire({"default": relay}, redirect_to="qa@qa.example")
    mails = [send(app, f"u{n}@example{n}.org") for n in range(3)]
    await eventually(lambda: one(owner, "select count(*) from pgmail.outcome") == 1)
    await eventually(lambda: leased(owner) == 0)
    assert sorted(state(app, mail) for mail in mails) == ["queued", "queued", "sent"]


async def test_a_test_is_neither_redirected_nor_refused(app, owner, crew, sink):
    await crew.hire(redirect_to="qa@example.com", allowed_recipients="nobody.example")
    mail = a_test(app)
    await eventually(lambda: state(app, mail) == "sent")
    assert not sink.accepted


def test_the_words_of_a_staging_are_the_same_for_the_same_settings():
    one_way = Staging.of(Settings(allowed_recipients="b.example @A.example", redirect_to="qa@Example.com"))
    other = Staging.of(Settings(allowed_recipients="a.example b.example", redirect_to="qa@example.com"))
    assert one_way.words() == other.words()
    assert one_way
    assert not Staging.of(Settings())
    assert Staging.of(Settings()).words() is None
