"""Erasure: nothing of the person is left in any table, and every count is what it was."""

import psycopg
import pytest

from tests.sql import kit

ADA = "Ada.Lovelace@example.org"
ada = ADA.lower()
BOB = {"address": "bob@example.org", "variables": {"name": "Bob"}}


def erase(connection, address=ADA, reason="asked by letter", **more):
    return kit.one(
        connection,
        "select pgmail.erase(%s, %s, after => %s, most => %s, dry_run => %s)",
        [address, reason, more.get("after"), more.get("most", 1000), more.get("dry_run", False)],
    )


def everywhere(owner, word):
    """Tables with a row that holds the word, content decoded."""
    found = set()
    tables = kit.rows(
        owner,
        "select c.relname from pg_class c where c.relnamespace = 'pgmail'::regnamespace"
        " and c.relkind in ('r', 'p') and not c.relispartition and c.relname <> 'idempotency'",
    )
    for (table,) in tables:
        more = {
            "message": "convert_from(x.content, 'UTF8')",
            "recipient": "convert_from(x.variables, 'UTF8')",
        }
        said = f"concat_ws(' ', x::text, {more.get(table, 'null')})"
        text = f"select count(*) from pgmail.{table} x where {said} ilike %s"
        if kit.one(owner, text, [f"%{word}%"]):
            found.add(table)
    return found


def content(owner, message):
    return kit.one(
        owner, "select convert_from(content, 'UTF8')::jsonb from pgmail.message where id = %s", [message]
    )


def settle(hand, kind="sent", **more):
    leases = hand.claim()
    assert hand.settle(leases, kind, **more) == ["settled"] * len(leases)


@pytest.fixture
def admin(db):
    return db.connect("admin")


def test_nothing_of_a_person_is_left_and_the_books_are_what_they_were(app, owner, admin, hand):
    admin.execute("select pgmail.suppress('someone@example.org', 'manual')")
    mail = kit.send(
        app, f"Ada Lovelace <{ADA}>", text=f"Dear Ada <{ADA}>", tags={"who": "lovelace"}, metadata={"name": ADA},
        attachments=[{"filename": "lovelace.txt", "content": "aGVsbG8="}], idempotency_key=f"welcome-{ada}",
    )  # fmt: skip
    personal = kit.send(
        app,
        [{"address": ADA, "variables": {"name": "Lovelace"}}, BOB],
        mode="personal", text="Dear {{ name }}",
    )  # fmt: skip
    bob = kit.recipients(app, personal)[1]
    for lease in hand.claim():
        said = {} if lease.id == bob else {"reply": f"<{ADA}>: no such user", "reason": f"no {ada}"}
        hand.settle(lease, "bounced", code=550, enhanced="5.1.1", **said)
    admin.execute("select pgmail.suppress(%s, 'unsubscribed', %s)", [ADA, f"a click by {ADA}"])
    before = (
        kit.rows(owner, "select * from pgmail.ledger"),
        kit.count(owner, "event"),
        kit.count(owner, "outcome"),
    )
    assert everywhere(owner, "lovelace")
    answer = erase(admin, reason=f"{ADA} asked us to")
    assert answer | {"person": ""} == {
        "person": "", "recipients": 2, "messages": 1, "cancelled": 0, "discarded": 0, "too_late": 0, "waiting": 0,
        "suppressions": 1, "next": None,
    }  # fmt: skip
    assert everywhere(owner, "lovelace") == set()
    assert (
        kit.rows(owner, "select * from pgmail.ledger"),
        kit.count(owner, "event"),
        kit.count(owner, "outcome"),
    ) == before
    assert kit.differences(owner) == [0]
    assert kit.states(app, mail) == ["bounced"]
    assert kit.states(app, personal) == ["bounced", "bounced"]
    people = kit.rows(owner, "select address from pgmail.recipient where address ~ 'erased'")
    assert people == [(answer["person"],)] * 2
    assert kit.rows(
        owner, "select actor, object, reason from pgmail.audit where action = 'person.erase'"
    ) == [("pgmail_admin", answer["person"], f"{answer['person']} asked us to")]
    assert content(owner, personal)["text"] == "Dear {{ name }}"
    assert kit.one(owner, "select count(*) from pgmail.recipient where variables is not null") == 1
    assert erase(admin)["recipients"] == 0


def test_an_opt_out_survives_the_erasure_and_the_address_does_not_stand_there(app, owner, admin, hand, db):
    admin.execute("select pgmail.suppress(%s, 'unsubscribed')", [ADA])
    erase(admin)
    assert everywhere(owner, "lovelace") == set()
    assert kit.state(app, kit.send(app, ADA)) == "suppressed"
    assert kit.state(app, kit.send(app, "other@example.org")) == "queued"


def test_in_an_email_to_several_the_person_is_taken_out_and_the_others_stay(app, owner, admin, hand):
    mail = kit.send(
        app, [f"Ada <{ADA}>", "Bob <bob@example.org>", f"x{ada}"], cc=["cy@example.org"],
        reply_to=ADA, html=f"<a href='mailto:{ADA}'>{ada}</a> and not x{ada} nor {ada}.uk",
        text=f"To:\n{ADA}\n", tags={"who": "x", "mail": "y"}, metadata={"for": ADA},
    )  # fmt: skip
    leases = hand.claim()
    hand.settle(leases[:-1])
    answer = erase(admin)
    assert (answer["recipients"], answer["waiting"]) == (0, 1)  # somebody still waits for it as it is
    assert content(owner, mail)["to"][0]["address"] == ADA
    hand.settle(leases[-1])
    answer = erase(admin)
    assert (answer["recipients"], answer["messages"], answer["waiting"]) == (1, 1, 0)
    token, left = answer["person"], content(owner, mail)
    assert left["to"] == [
        {"address": token}, {"name": "Bob", "address": "bob@example.org"}, {"address": f"x{ada}"}
    ]  # fmt: skip
    assert left["reply_to"] == [{"address": token}]
    assert left["html"] == f"<a href='mailto:{token}'>{token}</a> and not x{ada} nor {ada}.uk"
    assert left["text"] == f"To:\n{token}\n"
    assert kit.one(owner, "select metadata from pgmail.message") == {"for": token}
    assert kit.differences(owner) == [0]


def test_what_waits_is_cancelled_dead_letters_are_discarded_and_what_is_being_sent_is_told(
    app, owner, admin, hand
):
    dead = kit.send(app, ADA)
    hand.settle(hand.claim(), "dead", reason="poison", error=f"no {ADA}")
    sending = kit.send(app, ADA)
    lease = hand.claim()
    queued = kit.send(app, ADA)
    later = kit.send(app, ADA, on_limit="hold")
    dry = erase(admin, dry_run=True)
    assert (dry["cancelled"], dry["discarded"], dry["too_late"], dry["recipients"]) == (2, 1, 1, 3)
    assert kit.states(app, queued) == ["queued"]
    assert "recipient" in everywhere(owner, "lovelace")
    answer = erase(admin)
    assert {k: answer[k] for k in dry if k != "person"} == {k: dry[k] for k in dry if k != "person"}
    assert [kit.state(app, x) for x in (dead, sending, queued, later)] == [
        "cancelled",
        "sending",
        "cancelled",
        "cancelled",
    ]
    assert kit.differences(owner) == [0]
    assert hand.settle(lease) == ["settled"]
    assert erase(admin)["recipients"] == 1
    assert everywhere(owner, "lovelace") == set()
    assert kit.differences(owner) == [0]


def test_a_person_with_much_mail_is_erased_in_batches(app, owner, admin, hand):
    kit.send_many(app, [kit.body(ADA, subject=f"{n}") for n in range(25)])
    settle(hand)
    sizes, after = [], None
    while True:
        answer = erase(admin, after=after, most=10)
        sizes.append(answer["recipients"])
        if (after := answer["next"]) is None:
            break
    assert sizes == [10, 10, 5]
    assert kit.one(owner, "select count(distinct address) from pgmail.recipient") == 1
    assert kit.one(owner, "select count(*) from pgmail.audit where action = 'person.erase'") == 1
    assert kit.differences(owner) == [0]


def test_another_tenant_keeps_the_same_person_and_has_another_token(app, owner, admin, hand, db):
    owner.execute("select pgmail.create_tenant('other')")
    kit.send(app, ADA)
    settle(hand)
    one = erase(admin)["person"]
    kit.send(app, ADA)
    other = kit.one(admin, "select pgmail.erase_for('other', %s, 'asked')", [ADA])
    assert other["recipients"] == 0
    assert other["person"] != one
    assert kit.one(admin, "select pgmail.erase_for('default', %s, 'asked')", [ADA])["person"] == one
    with pytest.raises(psycopg.Error) as error:
        admin.execute("select pgmail.erase_for('nobody', %s, 'asked')", [ADA])
    assert kit.refusal(error.value).code == "unknown_tenant"


@pytest.mark.parametrize(
    ("address", "reason", "code"),
    [("nobody", "x", "invalid_address"), (ADA, " ", "missing_field"), (ADA, "x" * 1001, "invalid_reason")],
)
def test_an_erasure_says_who_and_why(admin, address, reason, code):
    with pytest.raises(psycopg.Error) as error:
        erase(admin, address, reason)
    assert kit.refusal(error.value).code == code


def test_an_application_may_not_erase(app):
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        erase(app)


def test_mail_claimed_after_a_suppressed_person_was_erased_is_not_sent(app, owner, admin, db):
    """What a worker asks before it sends knows the hash, too."""
    admin.execute("select pgmail.suppress(%s, 'complained')", [ADA])
    erase(admin)
    worker = db.connect("worker")
    assert len(kit.one(worker, "select pgmail.suppressed_as(1, %s)", [ada])) == 2
