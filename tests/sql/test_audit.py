"""The audit: every act of a person or a key leaves one row, with its author and where from; nobody edits it."""

import re

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.fix_db import PREFIX
from tests.sql import kit

ROLES = ("api", "worker", "maintain", "producer", "reader", "admin")
# What changes nothing that people decide on: mail itself, what the API's key check notes, what processes note.
NO_ACT = {
    *("send", "send_many", "check_key_v1", "check_key_v2", "note_keys_v1", "mark_v1", "recall_v1"),
    "share_guesses_v1",  # a count of tries; those that are told leave a row by note_guesses_v1
    "recount",  # counts anew and answers; changes nothing
}


def test_no_role_but_the_owner_may_change_the_audit(owner):
    for role in ROLES:
        for right in ("insert", "update", "delete", "truncate", "references", "trigger"):
            assert not kit.one(
                owner, "select has_table_privilege(%s, 'pgmail.audit', %s)", [PREFIX + role, right]
            )
        for right in ("insert", "update", "references"):
            assert not kit.one(
                owner, "select has_any_column_privilege(%s, 'pgmail.audit', %s)", [PREFIX + role, right]
            )
    granted = kit.rows(
        owner,
        "select distinct a.grantee::regrole::text, a.privilege_type from pg_class c, aclexplode(c.relacl) a"
        " where c.oid = 'pgmail.audit'::regclass and a.grantee <> c.relowner and a.privilege_type <> 'SELECT'",
    )
    assert granted == []
    assert kit.one(
        owner, "select relowner::regrole::text from pg_class where oid = 'pgmail.audit'::regclass"
    ) == (PREFIX + "owner")


def test_who_tries_to_change_the_audit_is_refused(db, owner):
    owner.execute("select pgmail.suppress('a@example.org', 'manual', null, '', null)")
    for role in ROLES:
        with db.connect(role) as connection:
            for statement in (
                "insert into pgmail.audit (actor, action) values ('x', 'y')",
                "update pgmail.audit set actor = 'x'",
                "delete from pgmail.audit",
                "truncate pgmail.audit",
                "drop table pgmail.audit",
                "alter table pgmail.audit disable row level security",
            ):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(statement)
    assert kit.count(owner, "audit") == 1


def test_only_imports_and_erasures_change_a_row_that_is_there(owner):
    bodies = kit.rows(
        owner, "select proname, prosrc from pg_proc where pronamespace = 'pgmail'::regnamespace"
    )
    changing = {
        name for name, text in bodies if re.search(r"(update|delete\s+from|truncate)\s+pgmail\.audit", text)
    }
    assert changing == {"suppress_many", "erase_batch", "erase_tenant"}


def test_every_function_that_a_person_acts_by_leaves_a_row(owner):
    every = "select proname, string_agg(prosrc, ' ') from pg_proc where pronamespace = %s::regnamespace group by 1"
    bodies = dict(kit.rows(owner, every, ["pgmail"]))
    acting = {name for name, text in bodies.items() if "record_act(" in text or "into pgmail.audit" in text}
    while True:
        calls = re.compile(r"pgmail\.(?:" + "|".join(map(re.escape, sorted(acting))) + r")\(")
        more = {name for name, text in bodies.items() if calls.search(text)} - acting
        if not more:
            break
        acting |= more
    offered = kit.rows(
        owner,
        "select distinct proname from pg_proc where pronamespace = 'pgmail'::regnamespace and provolatile = 'v'"
        " and (has_function_privilege(%s, oid, 'execute') or has_function_privilege(%s, oid, 'execute'))",
        [PREFIX + "admin", PREFIX + "api"],
    )
    assert {name for (name,) in offered} - acting - NO_ACT == set()


ACTS = {
    "create_key('shop', 'pgm_live_x', '\\x01')": "key.create",
    "save_stream('news', '{}')": "stream.save",
    "save_template('hello', 's', 't', null, '{}', '{}', true)": "template.save",
    "save_asset('logo', 'logo.png', 'image/png', '\\x01')": "asset.save",
    "suppress('b@example.org', 'manual', null, '', null)": "suppression.add",
    "unsuppress('a@example.org', '', 'asked')": "suppression.remove",
    "pause_mail('site', 'example.org', 'why')": "site.pause",
    "pause_relay('default', 'why')": "relay.pause",
    "resume_relay('default', 'why')": "relay.resume",
    "set_limit('site', 'example.org', 1, 1, 1, 0, null)": "limit.set",
    "set_tenant('default', 2)": "tenant.set",
    "set_senders('default', 'verified', 'why')": "tenant.set",
    "create_tenant('other')": "tenant.create",
    "grant_tenant('pgmail_reader', 'default')": "tenant.grant",
    "set_retention(10, 20, 'why')": "retention.set",
    "add_domain('example.com')": "domain.add",
    "trust_domain('example.com', 'why')": "domain.trust",
    "remove_domain('example.net', 'why')": "domain.remove",
    "cancel(%(id)s, 'why')": "email.cancel",
    "hold(%(id)s, 'why')": "email.hold",
    "reschedule(%(id)s, pgmail.now() + interval '1 hour')": "email.reschedule",
    "erase('ada@example.org', 'asked')": "person.erase",
    "suppress_many('{c@example.org}', '{}', '{manual}', '{}', '{}', '{}')": "suppression.import",
}


@pytest.mark.parametrize("call", ACTS)
def test_an_act_is_one_row_with_who_and_from_where(db, owner, app, call):
    kit.one(owner, "select pgmail.suppress('a@example.org', 'manual', null, '', null)")
    owner.execute("select pgmail.add_domain('example.net')")
    sent = kit.send(app)
    before = kit.one(owner, "select max(id) from pgmail.audit")
    with db.connect("admin", application_name="an operator's shell") as admin:
        admin.execute("select pgmail." + call, {"id": sent})
    rows = kit.rows(
        owner, "select action, actor, source, application from pgmail.audit where id > %s", [before]
    )
    assert rows == [(ACTS[call], "pgmail_admin", "127.0.0.1", "an operator's shell")]


def test_what_fails_or_changes_nothing_leaves_no_row(owner, app):
    kit.send(app)
    with pytest.raises(psycopg.Error):
        owner.execute("select pgmail.set_senders('nobody', 'any')")
    with owner.transaction(force_rollback=True):
        owner.execute("select pgmail.set_senders('default', 'verified')")
    owner.execute("select pgmail.send(%s)", [Jsonb(kit.body())])
    assert kit.count(owner, "audit") == 0
