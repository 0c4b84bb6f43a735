"""Resolving what is in doubt, and dead letters by filter: what is meant moves, and it is said who and why."""

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.sql import kit

pytestmark = pytest.mark.one_server


@pytest.fixture
def admin(db):
    return db.connect("admin")


@pytest.fixture
def doubtful(db, app, hand, other):
    """Makes mail that is held in doubt; its ids."""
    kit.stream(db.connect(), "careful", on_doubt="hold")
    kit.stream(db.connect(), "worried", on_doubt="hold")

    def make(*to, stream="careful", relay="default"):
        mails = [kit.send(app, address, stream=stream) for address in to]
        leases = [lease for lease in hand.claim(holds=True) if lease.message_id in mails]
        assert hand.begin(leases, relay) == ["begun"] * len(mails)
        other.rescue(hand.epoch)
        hand.epoch = kit.one(hand.connection, "select pgmail.worker_start_v1('host', 1, 'test', 10)")
        return mails

    return make


def listed(connection, **filter):
    return {
        row[0] for row in kit.rows(connection, "select message_id from pgmail.in_doubt(%s)", [Jsonb(filter)])
    }


def test_assumed_sent_counts_as_sent_and_says_who_said_so(app, owner, admin, doubtful):
    (mail,) = doubtful("ada@example.org")
    assert kit.one(admin, "select pgmail.resolve(%s, 'assume_sent', 'seen in their log')", [mail]) == 1
    assert kit.state(app, mail) == "sent"
    words = "assumed sent by pgmail_admin: seen in their log"
    assert kit.rows(app, "select detail, relay from pgmail.trace(%s) where type = 'email.sent'", [mail]) == [
        (words, "default")
    ]
    assert "counts as sent since" in (said := kit.one(app, "select pgmail.why(%s)", [mail]))
    assert words in said
    assert kit.differences(owner) == [0]
    assert kit.one(admin, "select pgmail.resolve(%s, 'assume_sent')", [mail]) == 0


def test_resent_goes_back_to_the_queue_and_is_not_in_doubt_any_more(app, owner, admin, hand, doubtful):
    (mail,) = doubtful("ada@example.org")
    assert kit.one(admin, "select pgmail.resolve(%s, 'resend', 'not in their log')", [mail]) == 1
    assert listed(admin) == set()
    assert kit.events(app, mail)[-1] == "queued"
    assert hand.fold() == 1
    hand.settle(hand.claim(holds=True))
    assert kit.state(app, mail) == "sent"
    assert kit.differences(owner) == [0]


def test_every_resolution_is_in_the_record_with_who_and_why(owner, admin, doubtful):
    one, *_ = doubtful("a@example.org", "b@example.org")
    admin.execute("select pgmail.resolve(%s, 'resend', 'because')", [one])
    admin.execute("select pgmail.resolve_all('assume_sent', '{}', 'all the others')")
    acts = "select actor, object, reason from pgmail.audit where action = 'email.resolve' order by id"
    first, second = kit.rows(owner, acts)
    assert first == ("pgmail_admin", str(one), "resend: because")
    assert second == ("pgmail_admin", "1 in doubt by filter {}", "assume_sent: all the others")


def test_a_filter_means_what_it_says(owner, admin, app, doubtful):
    (a,) = doubtful("ada@one.example")
    (b,) = doubtful("bob@two.example", stream="worried", relay="second")
    epoch = kit.one(
        owner,
        "select max(worker) from pgmail.event where recipient_id in"
        " (select recipient_id from pgmail.status(%s)) and type = 'email.in_doubt'",
        [b],
    )
    assert listed(admin) == {a, b}
    for chosen in (
        {"stream": "worried"}, {"site": "two.example"}, {"relay": "second"}, {"worker": epoch},
        {"recipient": "Bob@Two.example"}, {"stream": "worried", "doubted_after": "2001-01-01T00:00:00Z"},
    ):  # fmt: skip
        assert (chosen, listed(admin, **chosen)) == (chosen, {b})
    assert listed(admin, doubted_before="2001-01-01T00:00:00Z") == set()
    assert kit.one(admin, "select pgmail.resolve_all('resend', %s)", [Jsonb({"site": "two.example"})]) == 1
    assert (kit.state(app, a), kit.state(app, b)) == ("held", "queued")


@pytest.mark.parametrize(
    ("how", "filter", "field"),
    [
        ("resend", {"sight": "x"}, "/filter/sight"),
        ("resend", {"worker": "one"}, "/filter/worker"),
        ("resend", {"stream": 7}, "/filter/stream"),
        ("resend", {"doubted_before": "soon"}, "/filter/doubted_before"),
        ("resend", {"recipient": "nobody"}, "/filter/recipient"),
        ("resend", [], "/filter"),
        ("forget", {}, "/how"),
    ],
)
def test_a_slip_resolves_nothing(admin, doubtful, how, filter, field):
    doubtful("ada@example.org")
    with pytest.raises(psycopg.Error) as refused:
        admin.execute("select pgmail.resolve_all(%s, %s)", [how, Jsonb(filter)])
    assert kit.refusal(refused.value).field == field
    assert len(listed(admin)) == 1


def test_a_call_takes_no_more_than_it_may_and_the_oldest_first(app, admin, doubtful):
    mails = doubtful(*(f"u{n}@example.org" for n in range(5)))
    assert kit.one(admin, "select pgmail.resolve_all('resend', most => 3)") == 3
    assert [kit.state(app, mail) for mail in mails] == ["queued"] * 3 + ["held"] * 2


def test_what_was_held_for_another_reason_is_not_in_doubt_and_not_resolved(db, app, admin):
    kit.stream(db.connect(), "full", max_queued=0)
    mail = kit.send(app, stream="full", on_limit="hold")
    assert listed(admin) == set()
    assert kit.one(admin, "select pgmail.resolve(%s, 'assume_sent')", [mail]) == 0
    assert kit.state(app, mail) == "held"


def test_a_reply_that_was_lost_is_held_in_doubt_too(app, admin, hand, doubtful):
    mail = kit.send(app, stream="careful")
    hand.settle(
        hand.claim(holds=True), "held", doubt=True, reason="in doubt: the reply was lost", relay="smart"
    )
    assert listed(admin, relay="smart") == {mail}


def test_a_retry_or_a_cancel_does_not_end_the_doubt(admin, doubtful):
    (mail,) = doubtful("ada@example.org")
    with pytest.raises(psycopg.Error, match="it may have been sent already"):
        kit.one(admin, "select pgmail.retry(%s)", [mail])
    assert kit.one(admin, "select pgmail.cancel(%s)", [mail])["status"] == "too_late"
    assert listed(admin) == {mail}


def test_another_tenant_sees_and_resolves_nothing(db, owner, doubtful):
    (mail,) = doubtful("ada@example.org")
    owner.execute("select pgmail.create_tenant('other')")
    api = db.connect("api")
    api.execute("set pgmail.tenant = '2'")
    assert listed(api) == set()
    assert kit.one(api, "select pgmail.resolve_all('resend')") == 0
    with pytest.raises(psycopg.Error) as refused:
        api.execute("select pgmail.resolve(%s, 'resend')", [mail])
    assert refused.value.sqlstate == "PM404"


@pytest.fixture
def dead(app, hand):
    """Three dead letters that differ in all that a filter looks at."""
    mails = [kit.send(app, address) for address in ("ada@one.example", "bob@two.example", "eve@two.example")]
    facts = [
        {"reason": "template", "error": "no variable NAME", "site": "one.example"},
        {"reason": "attempts_exhausted", "code": 452, "reply": "mailbox full", "site": "two.example"},
        {
            "reason": "too_old",
            "code": 451,
            "enhanced": "4.7.1",
            "reply": "try again later",
            "site": "two.example",
        },
    ]
    leases = {lease.message_id: lease for lease in hand.claim()}
    for mail, fact in zip(mails, facts, strict=True):
        assert hand.settle(leases[mail], "dead", **fact) == ["settled"]
    return mails


@pytest.mark.parametrize(
    ("filter", "found"),
    [
        ({}, [0, 1, 2]),
        ({"site": "two.example"}, [1, 2]),
        ({"recipient": "Bob@two.example"}, [1]),
        ({"reason": "too_old"}, [2]),
        ({"text": "variable name"}, [0]),
        ({"text": "FULL"}, [1]),
        ({"text": "4.7.1"}, [2]),
        ({"text": "451"}, [2]),
        ({"text": "100%"}, []),
        ({"stream": "broadcast"}, []),
        ({"died_before": "2001-01-01T00:00:00Z"}, []),
        ({"died_after": "2001-01-01T00:00:00Z", "site": "one.example"}, [0]),
    ],
)
def test_dead_letters_are_found_by_address_text_reason_site_stream_and_time(app, admin, dead, filter, found):
    ids = [kit.recipients(app, dead[n])[0] for n in found]
    assert [row[0] for row in kit.rows(admin, "select pgmail.dead_letter_ids(%s)", [Jsonb(filter)])] == ids


def test_dead_letters_are_retried_and_discarded_by_filter_with_who_and_why(app, owner, admin, dead):
    assert kit.one(admin, "select pgmail.retry_all(%s, 'it is fixed')", [Jsonb({"reason": "template"})]) == 1
    assert kit.one(admin, "select pgmail.discard_all(%s, 'too late')", [Jsonb({"site": "two.example"})]) == 2
    assert [kit.state(app, mail) for mail in dead] == ["queued", "cancelled", "cancelled"]
    acts = "select actor, action, reason from pgmail.audit where action in ('email.retry', 'email.discard')"
    assert sorted(kit.rows(owner, acts)) == [
        *[("pgmail_admin", "email.discard", "too late")] * 2,
        ("pgmail_admin", "email.retry", "it is fixed"),
    ]
    assert kit.differences(owner) == [0]
