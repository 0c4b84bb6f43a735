"""Roles: each may do what is listed here and nothing else, and a tenant sees only its own."""

import psycopg
import pytest
from psycopg.types.json import Jsonb

from pgmail.store import migrate
from tests.fix_db import PREFIX
from tests.sql import kit
from tests.sql.kit import Hand, Refusal

PRODUCER = {"send", "send_many", "status", "trace", "why", "cancel", "reschedule", "seal_state_v1"}
PURE = {"fold_reply", "classify", "now", "uuid_floor", "uuid_time", "current_tenant", "state_of", "phase_of"}
MANAGE = {
    *("retry", "discard", "revoke_key", "list_keys", "save_template", "publish_template", "save_asset"),
    *("suppress", "unsuppress", "save_stream", "pause_mail", "resume_mail", "erase"),
    *("hold", "release", "suppress_many"),
    *("retry_all", "discard_all", "dead_letter_ids", "find_emails", "in_doubt", "resolve", "resolve_all"),
}
LOOK = {"stopped_by", "lane_name"}
DOMAINS = {"add_domain", "remove_domain", "domain_checked"}
METRICS = {"metrics_queue_v1", "metrics_fleet_v1", "metrics_tables_v1"}
LEAD = {
    *METRICS,
    *(
        "worker_start_v1",
        "worker_start_v2",
        "worker_beat_v1",
        "worker_stop_v1",
        "lead_v1",
        "rescue_v1",
        "fold_touches_v1",
        "wake_due_v1",
    ),
    *(
        "repair_lanes_v1",
        "expire_v1",
        "fold_tallies_v1",
        "purge_idempotency_v1",
        "purge_suppressions_v1",
        "make_partitions_v1",
    ),
    "orphans_v1",
    "doors_v1",
    "partition_state",
    *("domain_checked_v1", "domains_due_v1"),
    *("rollup_v1", "trim_rollups_v1", "gauge_lanes_v1", "gauge_states_v1"),
    *("make_partition_v2", "drop_partition_v1", "drop_strays_v1", "empty_content_v1", "retention_state"),
}
WITNESS = {"mark_v1", "recall_v1"}
HOOKS = {"add_hook", "set_hook", "remove_hook", "rotate_hook", "test_hook", "replay_hook", "count_replay"}
ALERTS = {
    *(
        "set_alert_rule",
        "remove_alert_rule",
        "alert_rules",
        "silence_alert",
        "unsilence_alert",
        "alert_silences",
    ),
    *(
        "add_alert_target",
        "remove_alert_target",
        "test_alert_target",
        "alert_delivery_state",
        "alert_targets",
    ),
    "alerts",
}
LOOK_AT_DATABASE = {"oldest_snapshot", "hot_tables", "replicas", "chores_reached"}
ASK = {"waits"}
WATCH = LOOK_AT_DATABASE | {
    *(
        "alert_step_v1",
        "alert_purge_v1",
        "alert_take_v1",
        "alert_give_back_v1",
        "alert_told_v1",
        "saw_certificate_v1",
        "missed_certificate_v1",
    ),
}
TELL = {"fan_out_hooks_v1", "claim_hooks_v1", "settle_hooks_v1", "keep_hooks_v1"}
FEED = {"feed_now_v1", "feed_since_v1", "feed_v1"}
FUNCTIONS = {
    "producer": PRODUCER,
    "reader": PURE | LOOK | ASK | {"status", "trace", "why", "in_doubt", "dead_letter_ids", "find_emails"},
    "analyst": PURE | {"status", "trace", "why"},
    "api": PURE | LOOK | ASK | PRODUCER | MANAGE | WITNESS | DOMAINS | FEED | {"check_key_v1", "live_keys_v1"}
    | {"quota_gate_v1", "take_quota_v1", "first_data_key_v1"}
    | ALERTS
    | HOOKS
    | {"check_key_v2", "make_key", "rotate_key", "reach_v1", "note_guesses_v1", "note_keys_v1", "share_guesses_v1"}
    | {"session_secret_v1", "session_key_v1", "form_once_v1", "preview_v1", "fleet_v1"},
    "admin": PURE | LOOK | ASK | PRODUCER | MANAGE | FEED | METRICS
    | DOMAINS | {"trust_domain", "set_senders"}
    | {"make_key", "rotate_key"}
    | {"create_key", "grant_tenant", "create_tenant", "recount", "pause_relay", "resume_relay", "partition_state"}
    | {"set_limit", "remove_limit", "set_tenant", "set_retention", "retention_state", "erase_for", "fleet_v1"}
    | {"end_sessions", "suspend_tenant", "resume_tenant", "erase_tenant", "revoke_tenant"}
    | {"stop_for_restore", "restore_doubts", "decide_restore", "accept_restore"}
    | HOOKS
    | ALERTS | LOOK_AT_DATABASE
    | {"set_quota", "remove_quota", "first_data_key_v1", "add_data_key", "rewrap_data_key"},
    "worker": PURE | LEAD | ASK | WITNESS | FEED
    | {"claim_v1", "release_v1", "settle_v1", "settle_v2", "relay_state_v1"}
    | {"suppress_bounced_v1", "postpone_v1"}
    | WATCH
    | TELL
    | {"claim_v3", "late_v1", "worker_opens_v1", "sealed_elsewhere_v1"}
    | {"claim_v2", "begin_v1", "suppressed_as", "has_erased", "take_tokens_v1", "take_tokens_v2", "limit_margin"}
    | {"share_permits_v1", "register_relays_v1", "slow_site_v1", "idle_lanes_v1"},
    "maintain": PURE | LEAD | ASK | WITNESS | TELL | WATCH | FEED,
}  # fmt: skip
FLEET = {"relay", "worker", "leader", "schema_version", "site_domain", "history", "witness", "fence"}
TENANTS = {
    *(
        "message",
        "attachment",
        "tag",
        "recipient",
        "queue",
        "lane",
        "event",
        "outcome",
        "dead_letter",
        "tally",
    ),
    *("tally_total", "tenant", "stream", "template", "asset", "suppression", "audit", "ledger"),
    "sender_domain",
    *("hook", "hook_secret", "hook_queue", "hook_attempt"),
}
RULES = {"reply_reason", "reply_rule", "reply_pattern", "slowed_site", "refusal"}
SHARED = {"limits", "pause"}  # the fleet's rows, and one's own
QUOTAS = {"quota", "door", "quota_meter", "quota_bucket"}
ALERTS = {"alert", "alert_rule", "alert_silence"}
FIGURES = {"backlog", "gauge", "pulse", "rollup", "cause", "insight_cursor"}
VIEWS = {
    *("my_message", "my_recipient", "my_queue", "my_event", "my_outcome", "my_dead_letter", "my_suppression"),
    *("my_stream", "my_total"),
}
CONTENT = {
    *("message.content", "attachment.body", "asset.body", "recipient.variables"),
    *("template.subject", "template.body_text", "template.body_html"),
    *("my_content.content", "my_attachment.body", "my_variables.variables"),
}
READS_CONTENT = {
    "producer": set(),
    "reader": set(),
    "analyst": set(),
    "maintain": set(),
    "api": {"message.content", "template.subject", "template.body_text", "template.body_html"},
    "worker": {name for name in CONTENT if not name.startswith("my_")},
    "admin": {name for name in CONTENT if not name.startswith("my_")},
}
SELECT = {
    "producer": set(),
    "analyst": VIEWS | {"schema_version", "reply_reason"},
    "reader": FLEET | SHARED | TENANTS | RULES | QUOTAS | FIGURES | ALERTS,
    "api": (FLEET | SHARED | TENANTS | RULES | QUOTAS | FIGURES) - {"attachment"},
    "admin": FLEET
    | SHARED
    | TENANTS
    | RULES
    | QUOTAS
    | FIGURES
    | ALERTS
    | {"bucket", "permit", "data_key", "lost_worker", "certificate"},
    "worker": FLEET
    | SHARED
    | {
        "message",
        "attachment",
        "recipient",
        "template",
        "asset",
        "stream",
        "suppression",
        "lane",
        "tenant",
        "queue",
        "data_key",
    },
    "maintain": FLEET,
}


def test_each_role_may_call_what_is_listed_and_nothing_else(owner):
    for role, expected in FUNCTIONS.items():
        allowed = kit.rows(
            owner,
            "select distinct proname from pg_proc where pronamespace = 'pgmail'::regnamespace"
            " and has_function_privilege(%s, oid, 'execute')",
            [PREFIX + role],
        )
        assert {name for (name,) in allowed} == expected, role


def test_each_role_may_read_what_is_listed_and_write_no_table(owner):
    def may(role, what, columns):
        found = kit.rows(
            owner,
            "select relname from pg_class where relnamespace = 'pgmail'::regnamespace"
            " and relkind in ('r', 'p', 'v', 'm') and (has_table_privilege(%(role)s, oid, %(what)s)"
            " or has_any_column_privilege(%(role)s, oid, %(columns)s))",
            {"role": PREFIX + role, "what": what, "columns": columns},
        )
        return {name for (name,) in found}

    for role, expected in SELECT.items():
        assert may(role, "select", "select") == expected, role
        assert (
            may(role, "insert, update, delete, truncate, references, trigger", "insert, update, references")
            == set()
        )
        sequences = kit.rows(
            owner,
            "select relname from pg_class where relnamespace = 'pgmail'::regnamespace and case relkind when 'S'"
            " then has_sequence_privilege(%s, oid, 'usage, select, update') else false end",
            [PREFIX + role],
        )
        assert sequences == [], role
        assert not kit.one(owner, "select has_schema_privilege(%s, 'pgmail', 'create')", [PREFIX + role])


def test_each_role_reads_the_content_that_it_serves_and_no_other(owner):
    for role, expected in READS_CONTENT.items():
        found = {
            name
            for name in CONTENT
            if kit.one(
                owner, "select has_column_privilege(%s, 'pgmail.' || %s, %s, 'select')",
                [PREFIX + role, *name.split(".")],
            )
        }  # fmt: skip
        assert found == expected, role


def public_rights(connection):
    return kit.rows(
        connection,
        "select proname from pg_proc, aclexplode(coalesce(proacl, acldefault('f', proowner))) a"
        " where pronamespace = 'pgmail'::regnamespace and a.grantee = 0"
        " union all select relname from pg_class, aclexplode(relacl) a"
        " where relnamespace = 'pgmail'::regnamespace and a.grantee = 0"
        " union all select nspname from pg_namespace, aclexplode(nspacl) a where nspname = 'pgmail' and a.grantee = 0",
    )  # fmt: skip


def test_no_right_is_the_publics(owner):
    assert public_rights(owner) == []


def test_what_is_new_is_closed_by_an_upgrade_that_may_not_set_up_roles(db, owner):
    owner.execute(
        "create function pgmail.fresh() returns integer language sql security definer as 'select 1'"
    )
    owner.execute("grant select on pgmail.queue to public")
    assert {name for (name,) in public_rights(owner)} == {"fresh", "queue"}
    migrate.upgrade(db.dsn, prefix=PREFIX, roles=False)
    assert public_rights(owner) == []


def test_no_default_gives_rights_to_what_is_made_later(owner):
    assert kit.rows(owner, "select defaclrole::regrole, defaclobjtype, defaclacl from pg_default_acl") == []


def test_every_security_definer_function_pins_its_search_path_to_the_schema_and_pg_temp_last(owner):
    assert kit.rows(
        owner,
        "select proname from pg_proc where pronamespace = 'pgmail'::regnamespace and prosecdef"
        " and not coalesce('search_path=pgmail, pg_temp' = any (proconfig), false)",
    ) == []  # fmt: skip


def test_what_stands_in_a_callers_search_path_is_not_called(db, app):
    # Even the form that is no security definer runs its own operators and its own schema's functions.
    with db.connect("admin") as admin:
        admin.execute(
            "create function pg_temp.jsonb_build_object(variadic text[]) returns jsonb language sql"
            " as $$ select null::jsonb $$"
        )
        assert kit.one(admin, "select pgmail.send(sender => 'a@example.com', recipient => 'b@example.org',"
                              " subject => 's', \"text\" => 't')")  # fmt: skip


def test_a_producer_reads_and_writes_no_table(app):
    for table in ("message", "queue", "api_key", "idempotency", "database_role"):
        for statement in (f"select * from pgmail.{table}", f"delete from pgmail.{table}"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                app.execute(statement)


@pytest.fixture
def neighbours(db, owner, hand):
    """Mail of tenant 1 in every table, and roles that belong to tenant 2 from now on; ids of tenant 1."""
    owner.execute("select pgmail.save_template('t', 's', 'b', null, '{}', '{}', true)")
    owner.execute("select pgmail.save_asset('logo', 'l.png', 'image/png', 'x')")
    owner.execute("select pgmail.suppress('gone@example.org')")
    owner.execute("select pgmail.create_key('k', 'pgm_', 'hash')")
    kit.stream(owner, "ours")
    mail = kit.send(
        owner, ["a@example.org", "gone@example.org", "b@example.org"], tags={"a": "b"}, idempotency_key="k",
        attachments=[{"filename": "f", "content": "eA=="}],
    )  # fmt: skip
    hand.fold()
    first, _ = hand.claim()
    hand.settle(first, "dead", reason="poison")
    owner.execute("select pgmail.fold_tallies_v1()")
    kit.send(owner, "c@example.org")
    owner.execute("select pgmail.create_tenant('neighbour')")
    for role in ("producer", "reader", "admin"):
        owner.execute(
            "select pgmail.revoke_tenant(%(role)s), pgmail.grant_tenant(%(role)s, 'neighbour')",
            {"role": PREFIX + role},
        )
    return [mail, *kit.recipients(owner, mail)]


def as_api(db, tenant):
    connection = db.connect("api", autocommit=False)
    connection.execute("select set_config('pgmail.tenant', %s, true)", [str(tenant)])
    return connection


_CALLS = ("status", "trace", "why", "cancel", "retry", "discard")


def test_another_tenants_mail_is_not_found_through_any_function(db, owner, neighbours):
    for role in ("producer", "reader", "api", "admin"):
        find_nothing(db, neighbours, role)
    assert kit.states(owner, neighbours[0]) == ["dead", "suppressed", "sending"]


def find_nothing(db, neighbours, role):
    connection = as_api(db, 2) if role == "api" else db.connect(role)
    mine = sorted(set(_CALLS) & FUNCTIONS[role])
    calls = [f"{name}(%s)" for name in mine]
    if "reschedule" in FUNCTIONS[role]:
        calls.append("reschedule(%s, now() + interval '1 hour')")
    for mail in neighbours:
        for call in calls:
            with pytest.raises(psycopg.Error) as refused, connection.transaction():
                connection.execute(f"select pgmail.{call}", [mail])
            assert kit.refusal(refused.value) == Refusal("not_found", "/id", "PM404")
    connection.close()


def test_another_tenants_rows_are_seen_in_no_table(db, neighbours):
    for role, connection in (("api", as_api(db, 2)), ("reader", db.connect("reader"))):
        see_nothing(connection, SELECT[role])


def see_nothing(connection, readable):
    for table in sorted(TENANTS & readable - {"tenant"}):
        assert (
            kit.one(connection, f"select count(*) from pgmail.{table} where tenant_id is distinct from 2")
            == 0
        ), table
    assert kit.rows(connection, "select name from pgmail.tenant") == [("neighbour",)]
    assert kit.rows(connection, "select enqueued, difference from pgmail.ledger") == [(0, 0)]


def test_a_tenant_uses_none_of_anothers_templates_assets_streams_suppressions_and_keys(app, neighbours):
    def fault(**more):
        with pytest.raises(psycopg.Error) as refused:
            kit.send(app, **more)
        return refused.value.diag.constraint_name

    assert fault(template="t", subject=None, text=None) == "unknown_template"
    assert fault(attachments=[{"asset": "logo"}]) == "unknown_asset"
    assert fault(stream="ours") == "unknown_stream"
    mail = kit.send(app, "gone@example.org", idempotency_key="k")
    assert kit.state(app, mail) == "queued"


def test_a_worker_claims_for_the_tenant_it_names_alone(db, app, neighbours):
    mine = kit.send(app, "a@example.org")
    assert [lease.message_id for lease in Hand(db.connect("worker"), tenant=2).claim()] == [mine]


def test_a_setting_changes_nothing_for_a_role_that_carries_no_tenant(db, neighbours):
    for role in ("producer", "reader", "admin"):
        with db.connect(role) as connection:
            connection.execute("set pgmail.tenant = '1'")
            connection.execute("set pgmail.actor = 'somebody'")
            with pytest.raises(psycopg.Error) as refused:
                connection.execute("select pgmail.status(%s)", [neighbours[0]])
            assert refused.value.sqlstate == "PM404"
            if role != "producer":
                assert kit.one(connection, "select pgmail.current_tenant()") == 2


def test_the_api_without_a_tenant_sees_and_does_nothing(db, neighbours):
    with db.connect("api") as connection:
        assert kit.one(connection, "select pgmail.current_tenant()") is None
        assert kit.count(connection, "message") == 0
        with pytest.raises(psycopg.Error) as refused:
            kit.send(connection)
        assert kit.refusal(refused.value) == Refusal("no_tenant", "", "PM403")


def test_the_api_carries_the_tenant_for_one_transaction(db, neighbours):
    connection = as_api(db, 1)
    assert kit.states(connection, neighbours[0]) == ["dead", "suppressed", "sending"]
    assert kit.count(connection, "message") == 2
    connection.rollback()
    assert kit.count(connection, "message") == 0


def test_a_role_that_belongs_to_no_tenant_is_told_how_to_get_one(db, owner):
    owner.execute("delete from pgmail.database_role where role_name = %s", [PREFIX + "producer"])
    with db.connect("producer") as connection, pytest.raises(psycopg.Error) as refused:
        connection.execute("select * from pgmail.send_many(%s)", [Jsonb([kit.body()])])
    assert kit.refusal(refused.value) == Refusal("no_tenant", "", "PM403")
    assert "grant_tenant" in refused.value.diag.message_hint
