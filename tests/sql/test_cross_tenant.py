"""Tenant B logs in as every role that may speak for it, knows all ids of A, and tries everything. A stays as it was.

The functions, tables and views are those of the catalogue, so that new ones are tried as they come.
"""

import psycopg
import pytest
from psycopg import sql
from psycopg.types.json import Jsonb

from tests import neighbours
from tests.fix_db import PREFIX
from tests.neighbours import SECRET, alike, state_of, told
from tests.sql import kit

# Of the API's process and not of a key's holder, who comes by HTTP (tests/api/test_api_cross_tenant.py): its witness of
# the whole database, and the checks before it knows for whom it acts.
OF_THE_PROCESS = {
    *("mark_v1", "recall_v1", "check_key_v1", "share_guesses_v1"),
    *("session_key_v1", "session_secret_v1"),
}
NOW = {"timestamp with time zone": ["2031-01-01T00:00:00Z"], "timestamptz": ["2031-01-01T00:00:00Z"]}


@pytest.fixture
def alpha(db, owner):
    return neighbours.make_alpha(db, owner)


@pytest.fixture
def log_in(db, owner, role_of_tenant):
    """Connections of B: its own producer and analyst, the shipped roles given to it, and the API acting for it."""

    def connect(kind):
        if kind == "api":
            connection = db.connect("api")
            connection.execute("select set_config('pgmail.tenant', '2', false)")
            return connection
        if kind in ("reader", "shipped producer"):
            role = "reader" if kind == "reader" else "producer"
            owner.execute(
                "select pgmail.revoke_tenant(%(role)s), pgmail.grant_tenant(%(role)s, 'neighbour')",
                {"role": PREFIX + role},
            )
            return db.connect(role)
        return role_of_tenant("neighbour", kind.split()[0], content="content" in kind)

    return connect


KINDS = ["producer", "analyst", "analyst content", "reader", "api"]


def functions_of(connection):
    """What the session's role may call: name, and the types of the arguments."""
    return kit.rows(
        connection,
        "select p.proname, array(select format_type(t, null) from unnest(p.proargtypes) with ordinality u(t, o)"
        " order by o)"
        " from pg_proc p where p.pronamespace = 'pgmail'::regnamespace and p.prokind = 'f'"
        " and has_function_privilege(p.oid, 'execute') order by 1",
    )  # fmt: skip


def argument(kind, values, turn):
    """A value of a type: the ids and names that are tried, one after the other."""
    base = kind.removesuffix("[]")
    if base == "jsonb":
        words, ids = values["text"], values["uuid"]
        forms = [
            {},
            {"recipient": words[3], "stream": words[0]},
            {"site": words[5]},
            kit.body(words[4], stream=words[0]),
            kit.body(template=words[1], subject=None, text=None),
            kit.body(idempotency_key=words[6]),
            kit.body(attachments=[{"asset": words[2]}]),
            [kit.body(words[4])],
            {"ids": [str(ids[0])]},
        ]  # fmt: skip
        return Jsonb(forms[turn % len(forms)])
    known = (
        values | NOW | {"bytea": [b"guess"], "boolean": [True, False], "character varying": values["text"]}
    )
    each = known.get(
        base, [1 if base in ("bigint", "smallint", "real", "double precision", "numeric") else None]
    )
    chosen = each[turn % len(each)]
    return [chosen] if kind.endswith("[]") else chosen


def call_of(name, kinds):
    places = sql.SQL(", ").join(sql.SQL("%s::{}").format(sql.SQL(kind)) for kind in kinds)
    return sql.SQL("select x::text from pgmail.{}({}) x").format(sql.Identifier(name), places)


@pytest.mark.parametrize("kind", KINDS)
def test_no_function_tells_or_changes_anything_of_another_tenant(owner, alpha, log_in, kind):
    connection = log_in(kind)
    before = state_of(owner)
    tried = 0
    for name, kinds in functions_of(connection):
        if kind == "api" and name in OF_THE_PROCESS:
            continue
        statement = call_of(name, kinds)
        turns = 10 if kinds else 1
        for turn in range(turns):
            answers = []
            for values in (alpha.real, alpha.unreal):
                params = [argument(one, values, turn) for one in kinds]
                with connection.transaction(force_rollback=True):
                    answers.append(told_inside(connection, statement, params))
            assert SECRET not in answers[0], (name, turn)
            assert alike(answers[0]) == alike(answers[1]), (name, turn)
            tried += 1
            for values in (alpha.real, alpha.unreal):  # and so that it lasts
                told(connection, statement, [argument(one, values, turn) for one in kinds])
    assert tried >= (20 if "analyst" in kind else 30)
    assert state_of(owner) == before


def told_inside(connection, statement, params):
    """What it answers, with the transaction alive afterwards."""
    try:
        with connection.transaction():
            return repr(connection.execute(statement, params).fetchall())
    except psycopg.Error as error:
        d = error.diag
        return repr((d.sqlstate, d.constraint_name, d.message_primary, d.message_detail, d.message_hint))


def relations(owner):
    found = kit.rows(
        owner,
        "select c.relname, exists (select from pg_attribute a where a.attrelid = c.oid and a.attname = 'tenant_id'),"
        " array(select a.attname::text from pg_attribute a where a.attrelid = c.oid and a.attnum > 0"
        " and not a.attisdropped) from pg_class c where c.relnamespace = 'pgmail'::regnamespace"
        " and c.relkind in ('r', 'p', 'v', 'm', 'S') order by 1",
    )  # fmt: skip
    return [(sql.Identifier("pgmail", name), by_tenant, columns) for name, by_tenant, columns in found]


@pytest.mark.parametrize("kind", KINDS)
def test_no_table_or_view_shows_anything_of_another_tenant(owner, alpha, log_in, kind):
    connection = log_in(kind)
    for name, by_tenant, columns in relations(owner):
        for column in columns:  # one by one: some may be granted and others not
            answer = told(connection, sql.SQL("select {} from {}").format(sql.Identifier(column), name))
            assert SECRET not in answer, (name, column)
            assert "alpha" not in answer, (name, column)
        if by_tenant:
            answer = told(connection, sql.SQL("select count(*) from {} where tenant_id = 1").format(name))
            assert answer == "[(0,)]" or "42501" in answer, name
        for value in (alpha.message, *alpha.recipients, alpha.dead, alpha.held):
            if "id" in columns:
                answer = told(
                    connection,
                    sql.SQL("select count(*) from {} where id::text = %s").format(name),
                    [str(value)],
                )
                assert answer == "[(0,)]" or "42501" in answer, name


@pytest.mark.parametrize("kind", KINDS)
def test_no_table_can_be_written_or_locked(owner, alpha, log_in, kind):
    connection = log_in(kind)
    before = state_of(owner)
    rights = "select oid, relacl::text from pg_class where relnamespace = 'pgmail'::regnamespace order by oid"
    granted = kit.rows(owner, rights)
    for name, _, columns in relations(owner):
        for attempt in (
            "insert into {} default values", "delete from {}", "truncate {}", "lock table {} in share mode",
            "alter table {} disable row level security", "drop table {} cascade",
            "create policy mine on {} using (true)",
            "create trigger t before insert on {} for each row execute function x()",
            "copy {} from stdin", "update {} set {} = {}", "insert into {} default values on conflict do nothing",
        ):  # fmt: skip
            words = [name, sql.Identifier(columns[0]), sql.Identifier(columns[0])][: attempt.count("{}")]
            with pytest.raises(psycopg.Error):
                connection.execute(sql.SQL(attempt).format(*words))
        told(
            connection, sql.SQL("grant all on {} to public").format(name)
        )  # at most a warning that nothing was granted
    assert state_of(owner) == before
    assert kit.rows(owner, rights) == granted


SETTINGS = [
    "set role {prefix}owner", "set role {prefix}admin", "set role {prefix}worker", "set role {prefix}maintain",
    "set role {prefix}api", "set role {prefix}reader", "set role {prefix}producer", "set role {prefix}analyst",
    "set role postgres", "set session authorization {prefix}owner", "set session authorization {prefix}producer",
    "set session authorization postgres",
    "set pgmail.tenant = '1'", "set pgmail.actor = 'key owner'", "select set_config('pgmail.tenant', '1', false)",
    "set row_security = off", "set search_path = pg_temp, pgmail", "set local_preload_libraries = 'x'",
    "set session_replication_role = replica", "alter role current_user set pgmail.tenant = '1'",
    "alter role current_user superuser", "alter role current_user bypassrls", "alter role current_user createrole",
    "grant {prefix}owner to current_user", "grant {prefix}admin to current_user",
    "create function pgmail.current_tenant(integer) returns integer language sql as 'select 1'",
    "create or replace function pgmail.current_tenant() returns integer language sql as 'select 1'",
    "create schema pgmail_mine", "alter database current set pgmail.tenant = '1'",
    "create temp table database_role as select session_user as role_name, 1 as tenant_id, false as carries_tenant",
    "create temp view message as select 1 as tenant_id",
    "create function pg_temp.now() returns timestamptz language sql as $$ select 'epoch'::timestamptz $$",
]  # fmt: skip


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "api"])
def test_nothing_that_a_session_sets_makes_it_somebody_else(db, owner, alpha, log_in, kind):
    connection = log_in(kind)
    own = kit.one(owner, "select count(*) from pgmail.message where tenant_id = 2")
    before = state_of(owner)
    for setting in SETTINGS:
        told(connection, setting.format(prefix=PREFIX))
        for known in alpha.real["uuid"][:3]:
            for call in ("status", "trace", "why", "cancel"):
                answer = told(
                    connection, sql.SQL("select pgmail.{}(%s)").format(sql.Identifier(call)), [known]
                )
                assert "PM404" in answer or "42501" in answer, (setting, call, answer)
                assert SECRET not in answer
        for table in ("message", "my_message", "my_recipient"):
            answer = told(connection, sql.SQL("select count(*) from pgmail.{}").format(sql.Identifier(table)))
            assert answer == f"[({own},)]" or "42501" in answer or "row-level security" in answer, (
                setting,
                answer,
            )
        who = kit.one(connection, "select session_user")
        told(connection, "reset role")
        told(connection, "reset all")
        assert kit.one(connection, "select session_user") == who
    assert state_of(owner) == before


def nodes(plan):
    """Row estimates and widths of all nodes of a plan."""
    yield plan["Plan Rows"], plan["Plan Width"], plan["Total Cost"]
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def estimate(connection, statement, params):
    explain = (
        sql.SQL("explain (format json) ") + statement
    )  # with the values in the text, for the planner to see
    answer = psycopg.ClientCursor(connection).execute(explain, params).fetchone()[0]
    return list(nodes(answer[0]["Plan"]))


GUESSES = [
    ("{}_message", "stream = %s", neighbours.STREAM, "nobody"),
    ("{}_message", "sender < %s", "zzzz", "a"),
    ("{}_recipient", "address = %s", neighbours.ADDRESS, "nobody@nowhere.example"),
    ("{}_recipient", "address < %s", "m", "b"),
    ("{}_recipient", "site = %s", neighbours.SITE, "nowhere.example"),
    ("{}_event", "type = %s", "email.held", "email.clicked"),
]


@pytest.fixture
def many(db, owner):
    """A has thousands of mails, and the planner knows."""
    made = neighbours.make_alpha(db, owner, mails=3000)
    owner.execute("analyze pgmail.message, pgmail.recipient, pgmail.event, pgmail.queue")
    return made


def guesses(connection, prefix):
    """Which guesses an estimate answers."""
    for view, condition, right, wrong in GUESSES:
        table = sql.SQL("select from pgmail.") + sql.SQL(view.format(prefix).removeprefix("_"))
        asked = table + sql.SQL(" where ") + sql.SQL(condition)
        if estimate(connection, asked, [right]) != estimate(connection, asked, [wrong]):
            yield view, condition


def test_estimates_of_the_planner_tell_an_analyst_nothing(many, log_in):
    analyst = log_in("analyst")
    assert list(guesses(analyst, "my")) == []


def test_estimates_would_tell_whoever_reads_the_tables_so_tenants_get_analysts(many, log_in):
    assert list(guesses(log_in("reader"), ""))


def test_statistics_and_other_sessions_are_not_shown(owner, many, log_in):
    for kind in ("producer", "analyst", "reader"):
        connection = log_in(kind)
        for ask in (
            "select * from pg_stats where schemaname = 'pgmail'",
            "select * from pg_stats_ext where schemaname = 'pgmail'",
            "select query from pg_stat_activity where pid <> pg_backend_pid()",
        ):
            answer = told(connection, ask)
            assert SECRET not in answer
            assert "alpha" not in answer
        assert "42501" in told(connection, "select * from pg_statistic")
