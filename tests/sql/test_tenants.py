"""Tenants: suspended, erased, and given database roles of their own."""

import functools

import psycopg
import pytest
from psycopg import sql

from pgmail.store import migrate
from tests.fix_db import PREFIX
from tests.sql import kit
from tests.sql.kit import Refusal


@pytest.fixture
def shop(db, owner):
    """A second tenant, `shop`; the producer and the analyst speak for it."""
    owner.execute("select pgmail.create_tenant('shop')")
    for role in ("producer", "analyst"):
        owner.execute(
            "select pgmail.revoke_tenant(%(role)s), pgmail.grant_tenant(%(role)s, 'shop')",
            {"role": PREFIX + role},
        )
    return db.connect("producer")


def pauses(connection):
    """What workers learn, as they ask for it."""
    return kit.rows(connection, "select tenant_id, scope, name, reason from pgmail.pause")


# ---------------------------------------------------------------- suspended
def test_a_suspended_tenants_mail_waits_for_a_reason_that_its_sender_sees(db, owner, shop):
    mail = kit.send(shop)
    owner.execute("select pgmail.suspend_tenant('shop', 'complaints: 3 %% of its mail')")
    later = kit.send(shop)
    for one in (mail, later):
        assert kit.state(shop, one) == "queued"
        why = kit.one(shop, "select pgmail.why(%s)", [one])
        assert "waits: tenant shop is suspended by pgmail_owner since" in why
        assert "complaints" in why
    assert [row[:3] for row in pauses(db.connect("worker"))] == [(2, "tenant", "shop")]
    owner.execute("select pgmail.resume_tenant('shop', 'they cleaned their list')")
    assert pauses(owner) == []
    assert "suspended" not in kit.one(shop, "select pgmail.why(%s)", [mail])
    told = kit.rows(owner, "select action, object, reason from pgmail.audit where tenant_id = 2 order by id")
    assert [row[0] for row in told[-2:]] == ["tenant.suspend", "tenant.resume"]
    assert told[-1] == ("tenant.resume", "shop", "they cleaned their list")


def test_new_mail_of_a_suspended_tenant_follows_its_on_limit(owner, shop):
    owner.execute("select pgmail.suspend_tenant('shop', 'unpaid')")
    assert kit.state(shop, kit.send(shop, on_limit="delay")) == "queued"
    held = kit.send(shop, on_limit="hold")
    assert kit.state(shop, held) == "held"
    assert "the tenant is suspended since" in kit.one(shop, "select pgmail.why(%s)", [held])
    assert kit.events(shop, held) == ["queued", "held"]
    for refused in ({"on_limit": "error"}, {"on_limit": "error", "idempotency_key": "k"}):
        with pytest.raises(psycopg.Error) as error:
            kit.send(shop, **refused)
        assert kit.refusal(error.value) == Refusal("tenant_suspended", "/on_limit", "PM403")
        assert "unpaid" in error.value.diag.message_primary
    batch = [kit.body(), kit.body(on_limit="error"), kit.body(on_limit="hold")]
    answers = kit.send_many(shop, batch, strict=False)
    assert [row[2] for row in answers] == [None, "tenant_suspended", None]
    assert kit.differences(owner) == [0, 0]


def test_a_key_that_was_used_before_the_suspension_answers_as_before(owner, shop):
    mail = kit.send(shop, idempotency_key="k", on_limit="error")
    owner.execute("select pgmail.suspend_tenant('shop', 'unpaid')")
    assert kit.send(shop, idempotency_key="k", on_limit="error") == mail


def test_a_suspension_concerns_nobody_else_and_only_an_administrator_lifts_it(db, owner, shop):
    owner.execute("select pgmail.suspend_tenant('shop', 'unpaid')")
    assert "suspended" not in kit.one(owner, "select pgmail.why(%s)", [kit.send(owner, on_limit="error")])
    with db.connect("api", autocommit=False) as api:
        api.execute("select set_config('pgmail.tenant', '2', true)")
        with pytest.raises(psycopg.Error) as error:
            api.execute("select pgmail.resume_mail('tenant', 'shop')")
        assert kit.refusal(error.value).code == "invalid_scope"
    for role in ("api", "producer", "worker", "analyst", "reader"):
        with db.connect(role) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("select pgmail.resume_tenant('shop')")
    db.connect("admin").execute("select pgmail.resume_tenant('shop')")


def test_suspending_asks_for_a_reason_and_for_a_tenant_that_there_is(owner, shop):
    for call, code in (
        ("suspend_tenant('shop', ' ')", "missing_field"),
        ("suspend_tenant('nobody', 'x')", "unknown_tenant"),
        ("resume_tenant('shop')", "not_suspended"),
    ):
        with pytest.raises(psycopg.Error) as error:
            owner.execute(f"select pgmail.{call}")
        assert kit.refusal(error.value).code == code


# ---------------------------------------------------------------- erased
def erase(connection, *, discard=False, most=5000):
    """All steps of it; the answers."""
    answers = []
    while not answers or not answers[-1]["done"]:
        answers.append(
            kit.one(connection, "select pgmail.erase_tenant('shop', 'they left', %s, %s)", [discard, most])
        )
        assert len(answers) < 200
    return answers


def fill(db, owner, shop):
    """Something of the tenant in every table that a tenant can fill."""
    with db.connect("api", autocommit=False) as api:
        api.execute("select set_config('pgmail.tenant', '2', true)")
        for call in (
            "save_template('t', 's', 'b', null, '{}', '{}', true)",
            "save_asset('logo', 'l.png', 'image/png', 'x')",
            "suppress('gone@example.org')",
            "pause_mail('site', 'example.org', 'why')",
        ):
            api.execute(f"select pgmail.{call}")
        api.commit()
    kit.send(
        shop, ["a@example.org", "gone@example.org"], tags={"a": "b"}, idempotency_key="k",
        attachments=[{"filename": "f", "content": "eA=="}],
    )  # fmt: skip
    owner.execute("select pgmail.set_limit('tenant', 'shop', 5, 1, null, 30, null)")


def left_of(owner, tenant):
    """Rows of a tenant, by table."""
    found = {}
    for (table,) in kit.rows(
        owner,
        "select c.oid::regclass::text from pg_class c where relnamespace = 'pgmail'::regnamespace"
        " and relkind in ('r', 'p') and not relispartition"
        " and exists (select from pg_attribute a where attrelid = c.oid and attname = 'tenant_id')",
    ):
        n = owner.execute(
            sql.SQL("select count(*) from {} where tenant_id = %s").format(sql.SQL(table)), [tenant]
        )
        if rows := n.fetchone()[0]:
            found[table.removeprefix("pgmail.")] = rows
    return found


def test_an_erased_tenant_leaves_its_totals_and_the_record_and_nothing_else(db, owner, shop, hand):
    kit.send(owner)
    fill(db, owner, shop)
    before = left_of(owner, 1)
    answers = erase(owner, discard=True)
    assert answers[0]["discarded"] == 1
    assert set(left_of(owner, 2)) <= {"tally", "tally_total", "audit", "pause"}
    assert left_of(owner, 1) == before
    assert kit.rows(owner, "select name from pgmail.tenant order by id") == [("default",), ("erased-2",)]
    assert kit.count(owner, "limits") > 0
    assert kit.rows(owner, "select from pgmail.limits where name = 'shop'") == []
    ledger = "select enqueued, cancelled, suppressed, difference from pgmail.ledger where tenant_id = 2"
    assert kit.rows(owner, ledger) == [(2, 1, 1, 0)]
    told = kit.rows(owner, "select action, object, reason from pgmail.audit where tenant_id = 2 order by id")
    assert ("tenant.erase", "tenant 2", "they left") in told
    assert all(reason is None for action, _, reason in told if action != "tenant.erase")
    with pytest.raises(psycopg.Error) as error:
        kit.send(shop)
    assert kit.refusal(error.value).code == "no_tenant"


def test_a_tenant_with_mail_that_waits_is_erased_only_if_that_is_given_up(owner, shop):
    mail = kit.send(shop)
    with pytest.raises(psycopg.Error) as error:
        owner.execute("select pgmail.erase_tenant('shop', 'they left')")
    assert kit.refusal(error.value) == Refusal("mail_waits", "/name", "PM409")
    assert kit.state(shop, mail) == "queued"  # and the tenant can still send and see


def test_mail_that_an_erased_tenant_commits_late_is_not_sent_and_can_be_erased_too(db, owner, shop):
    late = db.connect("producer", autocommit=False)
    kit.send(late)
    erase(owner, discard=True)
    late.commit()
    assert [row[:3] for row in pauses(db.connect("worker"))] == [(2, "tenant", "erased-2")]
    again = "select pgmail.erase_tenant('erased-2', 'what came late', true)"
    while not kit.one(owner, again)["done"]:
        pass
    assert set(left_of(owner, 2)) <= {"tally", "tally_total", "audit", "pause"}
    assert len(pauses(owner)) == 1


def test_erasing_waits_for_mail_that_is_being_sent(db, owner, shop):
    kit.send(shop)
    hand = kit.Hand(db.connect("worker"), tenant=2)
    (lease,) = hand.claim()
    answer = kit.one(owner, "select pgmail.erase_tenant('shop', 'they left', true)")
    assert (answer["sending"], answer["done"]) == (1, False)
    assert hand.settle(lease) == ["settled"]
    erase(owner, discard=True)
    assert kit.rows(owner, "select enqueued, sent, difference from pgmail.ledger where tenant_id = 2") == [
        (1, 1, 0)
    ]


def test_erasing_goes_in_small_steps_and_can_be_taken_up_again(db, owner, shop):
    kit.send_many(shop, [kit.body(f"p{i}@example.org") for i in range(25)])
    kit.one(owner, "select pgmail.erase_tenant('shop', 'they left', true, 10)")
    answers = erase(owner, discard=True, most=10)
    assert all(answer["discarded"] + answer["deleted"] <= 10 for answer in answers)
    assert set(left_of(owner, 2)) <= {"tally", "tally_total", "audit", "pause"}
    told = kit.rows(owner, "select action from pgmail.audit where action like 'tenant.erase%' order by id")
    assert told == [("tenant.erase",), ("tenant.erased",)]


def test_nobody_erases_the_tenant_that_it_speaks_for(owner):
    with pytest.raises(psycopg.Error) as error:
        owner.execute("select pgmail.erase_tenant('default', 'oops', true)")
    assert kit.refusal(error.value).code == "own_tenant"


# ---------------------------------------------------------------- roles
@pytest.fixture
def make_role(role_of_tenant):
    """Make a role of the tenant `shop` and connect as it."""
    return functools.partial(role_of_tenant, "shop")


def test_a_producer_of_a_tenant_sends_and_sees_no_table(owner, shop, make_role):
    producer = make_role("producer")
    mail = kit.send(producer)
    assert kit.state(producer, mail) == "queued"
    assert kit.rows(owner, "select tenant_id from pgmail.message") == [(2,)]
    for table in ("message", "my_message", "api_key", "database_role"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            kit.count(producer, table)


def test_an_analyst_sees_its_tenant_and_no_content(owner, shop, make_role):
    kit.send(owner)
    mail = kit.send(
        shop, "a@example.org", tags={"a": "b"}, attachments=[{"filename": "f", "content": "eA=="}]
    )
    analyst = make_role("analyst")
    assert kit.rows(analyst, "select id, tags from pgmail.my_message") == [(mail, {"a": "b"})]
    assert kit.rows(analyst, "select address from pgmail.my_recipient") == [("a@example.org",)]
    assert kit.rows(analyst, "select state from pgmail.my_queue") == [("queued",)]
    assert kit.rows(analyst, "select kind, n from pgmail.my_total") == [("enqueued", 1)]
    assert kit.state(analyst, mail) == "queued"
    for table in ("message", "my_content", "my_attachment", "my_variables"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            kit.count(analyst, table)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        kit.send(analyst)


def test_an_analyst_to_whom_content_was_granted_sees_that_of_its_tenant(owner, shop, make_role):
    kit.send(owner, text="secret")
    kit.send(shop, attachments=[{"filename": "f", "content": "eA=="}])
    analyst = make_role("analyst", content=True)
    (content,) = kit.rows(
        analyst, "select convert_from(content, 'UTF8')::jsonb->>'text' from pgmail.my_content"
    )
    assert content == ("Hello",)
    assert kit.rows(analyst, "select body from pgmail.my_attachment") == [(b"x",)]


def test_a_role_that_is_revoked_speaks_for_nobody_in_open_sessions_too(owner, shop, make_role):
    producer = make_role("producer")
    kit.send(producer)
    name = kit.one(producer, "select session_user")
    assert kit.one(owner, "select pgmail.revoke_tenant(%s, 'left the company')", [name])
    with pytest.raises(psycopg.Error) as error:
        kit.send(producer)
    assert kit.refusal(error.value).code == "no_tenant"
    assert not kit.one(owner, "select pgmail.revoke_tenant(%s)", [PREFIX + "api"])


def test_a_shipped_role_that_was_revoked_stays_so_after_an_upgrade(db, owner):
    app = db.connect("producer")
    kit.send(app)
    assert kit.one(owner, "select pgmail.revoke_tenant(%s, 'its password leaked')", [PREFIX + "producer"])
    assert not kit.one(owner, "select pgmail.revoke_tenant(%s)", [PREFIX + "producer"])
    migrate.upgrade(db.dsn, prefix=PREFIX)
    with pytest.raises(psycopg.Error) as error:
        kit.send(app)
    assert kit.refusal(error.value).code == "no_tenant"
    owner.execute("select pgmail.grant_tenant(%s, 'default')", [PREFIX + "producer"])
    kit.send(app)


def test_the_shipped_roles_of_an_erased_tenant_get_no_other_with_an_upgrade(db, owner):
    owner.execute("select pgmail.create_tenant('shop')")
    for role in ("admin", "owner"):
        owner.execute(
            "select pgmail.revoke_tenant(%(role)s), pgmail.grant_tenant(%(role)s, 'shop')",
            {"role": PREFIX + role},
        )
    admin = db.connect("admin")
    while not kit.one(admin, "select pgmail.erase_tenant('default', 'left', true)")["done"]:
        pass
    migrate.upgrade(db.dsn, prefix=PREFIX)
    with pytest.raises(psycopg.Error) as error:
        kit.send(db.connect("producer"))
    assert kit.refusal(error.value).code == "no_tenant"


def test_a_role_that_may_do_more_is_not_given_a_tenant(owner, shop):
    for role in ("postgres", PREFIX + "worker", "Mixed Case", "pg_x"):
        with pytest.raises(psycopg.Error) as error:
            owner.execute("select pgmail.make_tenant_role(%s, %s, 'shop', 'producer')", [PREFIX, role])
        assert kit.refusal(error.value).code == "invalid_role"


def test_a_role_moves_to_another_tenant_only_after_it_was_revoked(db, owner, shop, make_role):
    producer = make_role("producer")
    name = kit.one(producer, "select session_user")
    for act in (
        ("select pgmail.grant_tenant(%s, 'default')", [name]),
        ("select pgmail.make_tenant_role(%s, %s, 'default', 'producer')", [PREFIX, name]),
    ):
        with pytest.raises(psycopg.Error) as error:
            owner.execute(*act)
        assert kit.refusal(error.value) == Refusal("speaks_for_another", "/role", "PM409")
        assert "the tenant shop" in error.value.diag.message_primary
    owner.execute("select pgmail.make_tenant_role(%s, %s, 'shop', 'producer')", [PREFIX, name])
    owner.execute("select pgmail.revoke_tenant(%s)", [name])
    owner.execute("select pgmail.grant_tenant(%s, 'default')", [name])
    kit.send(producer)
    assert kit.one(owner, "select tenant_id from pgmail.message") == 1


def test_content_that_was_granted_does_not_outlive_the_tenant_it_was_of(db, owner, shop, make_role):
    analyst = make_role("analyst", content=True)
    name = kit.one(analyst, "select session_user")
    owner.execute("select pgmail.revoke_tenant(%s, 'left')", [name])
    owner.execute("select pgmail.make_tenant_role(%s, %s, 'default', 'analyst')", [PREFIX, name])
    assert kit.count(analyst, "my_message") == 0
    for table in ("my_content", "my_attachment", "my_variables"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            kit.count(analyst, table)


def test_no_grant_takes_the_tenants_of_keys_from_the_apis_role(db, owner):
    with db.connect("admin") as admin, pytest.raises(psycopg.Error) as error:
        admin.execute("select pgmail.grant_tenant(%s, 'default')", [PREFIX + "api"])
    assert kit.refusal(error.value) == Refusal("not_allowed", "/role", "PM409")
    carries = "select carries_tenant, tenant_id from pgmail.database_role where role_name = %s"
    assert kit.rows(owner, carries, [PREFIX + "api"]) == [(True, None)]
