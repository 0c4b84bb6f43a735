"""Who may send as whom: a tenant under the rule 'verified' sends from its verified domains and no others."""

from datetime import timedelta

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.sql import kit


@pytest.fixture
def strict(owner):
    """The first tenant, from its verified domains only."""
    owner.execute("select pgmail.set_senders('default', 'verified', 'a test')")
    return owner


def verify(connection, domain, *texts):
    """Add a domain and say that DNS has its record, or these texts."""
    added = kit.one(connection, "select pgmail.add_domain(%s)", [domain])
    token = kit.one(connection, "select token from pgmail.sender_domain where id = %s", [added])
    return look(connection, domain, "answered", texts or (f"pgmail-verify={token}",))


def look(connection, domain, outcome, texts=()):
    """Say what a look into DNS found; the state after it."""
    return kit.one(
        connection,
        "select pgmail.domain_checked(d.id, %s, %s, 'as DNS said') from pgmail.sender_domain d"
        " where d.domain = pgmail.domain_ascii(%s)",
        [outcome, list(texts), domain],
    )


def refused(connection, sender, **more):
    """Code, field and SQLSTATE."""
    with pytest.raises(psycopg.ProgrammingError) as caught:
        kit.send(connection, **({"from": sender} | more))
    diag = caught.value.diag
    return diag.constraint_name, diag.message_detail, caught.value.sqlstate


def test_a_tenant_of_old_sends_as_before_and_a_new_one_from_verified_domains_only(owner):
    assert kit.one(owner, "select senders from pgmail.tenant where id = 1") == "any"
    owner.execute("alter table pgmail.tenant alter column senders drop default")
    owner.execute(
        "alter table pgmail.tenant alter column senders set default 'verified'"
    )  # as the migration has it
    made = kit.one(owner, "select pgmail.create_tenant('new')")
    assert kit.one(owner, "select senders from pgmail.tenant where id = %s", [made]) == "verified"


def test_an_unverified_sender_is_refused_with_what_to_do_and_a_verified_one_is_not(strict, app):
    assert refused(app, "shop@example.com") == ("unverified_domain", "/from", "PM403")
    with pytest.raises(psycopg.Error, match=r"pgmail domain add example\.com"):
        kit.send(app)
    assert verify(strict, "example.com") == "verified"
    assert kit.send(app)
    assert refused(app, "shop@example.net")[0] == "unverified_domain"
    assert kit.one(app, "select code from pgmail.send_many(%s, strict => false)",
                   [Jsonb([kit.body(**{"from": "a@example.net"})])]) == "unverified_domain"  # fmt: skip


@pytest.mark.parametrize(
    ("sender", "may"),
    [
        ("a@example.com", True),
        ("A@EXAMPLE.com", True),
        ("a@mail.example.com", True),
        ("a@deep.mail.example.com", True),
        ("a@notexample.com", False),
        ("a@example.com.evil.net", False),
        ("a@com.example", False),
        ("a@com.com", False),
        ("a@bücher.example", True),
        ("a@xn--bcher-kva.example", True),
        ("Shop <a@example.com>", True),
        ("Shop @ Home <a@example.com>", True),
        ("Shop @ 5.99 <a@example.com>", True),
        ("Everything @5.99\u20ac! <a@example.com>", True),
        ("Rooms @ 1.250.00 <a@example.com>", True),
        ('"root@192.0.2.1" <a@example.com>', False),
        ('"ceo@5.99.bank.example" <a@example.com>', False),
        ('"ceo@99.bank" <a@example.com>', False),
        ('"ceo@bank.example" <a@example.com>', False),
        ('"ceo@mail.example.com" <a@example.com>', True),
        ("ceo\uff20bank.example <a@example.com>", False),
        ('"ceo @ bank.example" <a@example.com>', False),
        ("'ceo@bank.example' via us <a@example.com>", False),
    ],
)
def test_a_domain_stands_for_its_subdomains_and_for_no_neighbour(strict, app, sender, may):
    verify(strict, "Example.COM")
    verify(strict, "bücher.example")
    for to in ("ada@example.org", {"address": "ada@example.org", "name": "Ada"}, ["ada@example.org"]):
        if may:
            assert kit.send(app, to, **{"from": sender})
        else:
            assert refused(app, sender, to=to) == ("unverified_domain", "/from", "PM403")


@pytest.mark.parametrize(
    "name",
    [
        "ceo@bank.example!", "ceo@bank.example|", "ceo@bank.example/", "ceo@bank.example*", "ceo@bank.example=",
        "ceo@bank.example (x)", "ceo@bank.example..", "ceo@_bank.example", "ceo@[bank.example]", "ceo@-bank.example-",
        "ceo@bank.example\u200b", "ceo@bank.exam\u00adple", "ceo@bank.example\u2060", "ceo@\u2060bank.example",
        "ceo@bank\u200a.example", "ceo@bank.\u2009example", "ceo@bank.example\u2019s", "ceo@bank\u2011corp.example",
        "ceo@bank\u2212corp.example", "ceo@bank\u3002example", "ceo@bank\u2024example", "ceo@bank.example\U000e0061",
        "ceo@\U0001f3e6bank.example", "\ufe6bbank.example!", "ceo@b\u00fcro.example",
        "a@mine.example or ceo@bank.example!", "ceo@mine.example.bank.example", "ceo@mine.example\u200b.bank",
    ],
)  # fmt: skip
def test_no_character_hides_that_a_name_shows_an_address_elsewhere(strict, app, name):
    verify(strict, "mine.example")
    assert refused(app, f'"{name}" <x@mine.example>')[0] == "unverified_domain"


def test_a_name_with_an_at_may_show_what_is_no_address_elsewhere(strict, app):
    verify(strict, "mine.example")
    for name in (
        "Alice @ Work", "@alice", "Alice @ Work. Best offers", "a@b", "x@mine.example", "x@mail.mine.example!",
        "Shop (x@mine.example)", "\u201cx@mine.example\u201d", "x@\u200bmine.example", "B\u00fccher @caf\u00e9",
        "@", "@.", "@...",
    ):  # fmt: skip
        assert kit.send(app, **{"from": f'"{name}" <x@mine.example>'}), name


def test_other_faults_of_an_email_come_first_as_they_do_in_python(strict, app):
    assert refused(app, "a@example.com", subject="a\nb")[:2] == ("invalid_subject", "/subject")


def test_a_repetition_is_answered_with_the_first_id_after_the_domain_went(strict, app):
    verify(strict, "example.com")
    first = kit.send(app, idempotency_key="order-1")
    strict.execute("select pgmail.remove_domain('example.com')")
    assert kit.send(app, idempotency_key="order-1") == first
    assert refused(app, "shop@example.com", idempotency_key="order-2")[0] == "unverified_domain"


def test_a_domain_is_one_tenants_alone(strict, app):
    other = kit.one(strict, "select pgmail.create_tenant('other')")
    strict.execute("select pgmail.trust_domain('example.com', 'known from the contract', 'other')")
    assert kit.one(strict, "select tenant_id from pgmail.sender_domain") == other
    assert refused(app, "shop@example.com")[0] == "unverified_domain"


def test_another_token_verifies_nothing(strict, app):
    assert verify(strict, "example.com", "pgmail-verify=guessed", "v=spf1 -all") == "pending"
    assert verify(strict, "example.com", "") == "pending"
    assert kit.one(strict, "select verified_at from pgmail.sender_domain") is None
    assert refused(app, "shop@example.com")[0] == "unverified_domain"
    assert refused(app, '"x@example.com" <shop@example.com>')[0] == "unverified_domain"


def test_a_lost_record_counts_for_two_weeks_and_failures_of_dns_for_ever(strict, app):
    verify(strict, "example.com")

    def after(days, outcome):
        strict.execute(
            "update pgmail.sender_domain set missing_since = missing_since - %(d)s, checked_at = checked_at - %(d)s",
            {"d": timedelta(days=days)},
        )
        return look(strict, "example.com", outcome)

    assert after(0, "server_failed") == "verified"
    assert after(400, "timed_out") == "verified"
    strict.execute("update pgmail.sender_domain set missing_since = null")
    assert after(0, "no_name") == "verified"
    assert after(13, "no_record") == "verified"
    assert kit.send(app)
    assert after(2, "no_record") == "failed"
    assert refused(app, "shop@example.com")[0] == "unverified_domain"
    assert verify(strict, "example.com") == "verified"
    assert kit.rows(strict, "select action from pgmail.audit where action ~ '^domain' order by id") == [
        ("domain.add",), ("domain.verify",), ("domain.lapse",), ("domain.verify",)
    ]  # fmt: skip
    assert kit.one(strict, "select missing_since from pgmail.sender_domain") is None


def test_the_leader_looks_after_a_week_and_daily_at_what_is_missing(strict):
    verify(strict, "example.com")
    strict.execute("select pgmail.trust_domain('example.net', 'ours')")
    due = "select array_agg(domain) from pgmail.domains_due_v1()"

    def age(**by):
        strict.execute("update pgmail.sender_domain set checked_at = pgmail.now() - %s", [timedelta(**by)])

    assert kit.one(strict, due) is None
    age(days=6)
    assert kit.one(strict, due) is None
    age(days=8)
    assert kit.one(strict, due) == ["example.com"]
    look(strict, "example.com", "no_name")
    assert kit.one(strict, due) is None
    age(hours=25)
    assert kit.one(strict, due) == ["example.com"]


@pytest.mark.parametrize(
    "name", ["", "com", "a b.example", "exa\nmple.com", "1.2.3.4", "x." * 126 + "com", None]
)
def test_what_is_no_domain_is_refused(owner, name):
    with pytest.raises(psycopg.Error, match="is no domain") as caught:
        owner.execute("select pgmail.add_domain(%s)", [name])
    assert caught.value.diag.constraint_name == "invalid_domain"


def test_trust_wants_a_reason_and_says_who_gave_it(owner):
    with pytest.raises(psycopg.Error, match="say why"):
        owner.execute("select pgmail.trust_domain('example.com', ' ')")
    admin_says = "select trusted_by, trust_reason, state from pgmail.sender_domain"
    owner.execute("select pgmail.trust_domain('example.com', 'the demo')")
    assert kit.rows(owner, admin_says) == [("pgmail_owner", "the demo", "verified")]


def test_adding_twice_changes_nothing(owner):
    first = kit.one(owner, "select pgmail.add_domain('example.com')")
    token = kit.one(owner, "select token from pgmail.sender_domain")
    assert kit.one(owner, "select pgmail.add_domain('EXAMPLE.com')") == first
    assert kit.rows(owner, "select token from pgmail.sender_domain") == [(token,)]


def test_a_producer_and_the_api_may_not_vouch_nor_change_the_rule(db):
    for role in ("producer", "api", "reader", "worker"):
        with db.connect(role) as connection:
            for call in ("trust_domain('example.com', 'mine')", "set_senders('default', 'any')"):
                with pytest.raises(psycopg.Error, match="permission denied"):
                    connection.execute("select pgmail." + call)
