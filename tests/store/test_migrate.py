"""The schema comes and goes as a whole, with few rights, and says in one line what stops it."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from pgmail import sqlfiles
from pgmail.errors import DatabaseAway, Refused, SchemaMismatch, SettingsError
from pgmail.store import migrate, schema
from tests.fix_db import PREFIX
from tests.sql import kit

pytestmark = pytest.mark.every_server


def objects(connection: psycopg.Connection) -> set[str]:
    """Everything outside the system's own schemas, schemas included."""
    return {
        name
        for (name,) in connection.execute("""
            select 'schema ' || nspname from pg_namespace
              where nspname not in ('public', 'information_schema') and nspname !~ '^pg_'
            union all select c.relkind::text || ' ' || c.oid::regclass from pg_class c
              join pg_namespace n on n.oid = c.relnamespace where nspname !~ '^pg_|information_schema'
            union all select 'function ' || p.oid::regprocedure from pg_proc p
              join pg_namespace n on n.oid = p.pronamespace where nspname !~ '^pg_|information_schema'
            union all select 'type ' || t.oid::regtype from pg_type t
              join pg_namespace n on n.oid = t.typnamespace where nspname !~ '^pg_|information_schema'
            union all select 'default rights ' || oid from pg_default_acl
        """)
    }


@pytest.fixture
def weak_role(server_admin, empty_db):
    """A role that may log in and nothing else; (name, DSN of it in `empty_db`)."""
    name = f"weak_{empty_db.name[-12:]}"
    role = sql.Identifier(name)
    server_admin.execute(
        sql.SQL("create role {} login password {}").format(role, empty_db.server.role_password)
    )
    yield name, empty_db.server.dsn(empty_db.name, name)
    with psycopg.connect(empty_db.superuser_dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("drop owned by {} cascade").format(role))
    server_admin.execute(sql.SQL("drop role {}").format(role))


@pytest.fixture
def other_prefix(server_admin, empty_db):
    """A prefix of roles that nobody else uses; they are dropped after the test."""
    prefix = f"p{empty_db.name[-10:]}_"
    yield prefix
    with psycopg.connect(empty_db.superuser_dsn, autocommit=True) as connection:
        found = connection.execute(
            "select rolname from pg_roles where starts_with(rolname, %s)", [prefix]
        ).fetchall()
        for (role,) in found:
            connection.execute(sql.SQL("drop owned by {} cascade").format(sql.Identifier(role)))
            connection.execute(sql.SQL("drop role {}").format(sql.Identifier(role)))


def test_up_down_and_up_again_leaves_nothing_between(empty_db):
    with empty_db.connect() as connection:
        before = objects(connection)
        done = migrate.upgrade(empty_db.dsn, prefix=PREFIX)
        assert done[:6] == [
            "created the schema pgmail",
            "applied migration 0001",
            "applied migration 0002",
            "applied migration 0003",
            "applied migration 0004",
            "applied migration 0005",
        ]
        full = objects(connection)
        assert "r pgmail.alembic_version" in full
        assert migrate.check(empty_db.dsn).compatible
        assert "dropped the schema pgmail" in migrate.downgrade(empty_db.dsn, "base")
        assert objects(connection) == before
        migrate.upgrade(empty_db.dsn, prefix=PREFIX)
        assert objects(connection) == full


def test_a_step_back_and_forth_keeps_what_both_sides_know(empty_db):
    migrate.upgrade(empty_db.dsn, prefix=PREFIX)
    with empty_db.connect() as connection:
        full = objects(connection)
        connection.execute("select pgmail.set_limit('site', 'gmail.com', 7)")
        assert migrate.downgrade(empty_db.dsn, "0001", confirmed=True) == [
            "took back migration 0005",
            "took back migration 0004",
            "took back migration 0003",
            "took back migration 0002",
            migrate.OLDER_PROGRAM,
        ]
        assert "r pgmail.limits" not in objects(connection)
        assert "older" not in migrate.upgrade(empty_db.dsn, prefix=PREFIX)
        assert objects(connection) == full
        assert connection.execute("select count(*) from pgmail.stream").fetchone() == (2,)


def test_a_step_back_and_forth_leaves_an_erased_person_opted_out_and_notes_of_bounces_kept(empty_db):
    migrate.upgrade(empty_db.dsn, prefix=PREFIX)
    person = ["ada@example.org"]
    with empty_db.connect() as connection:
        connection.execute("select pgmail.suppress(%s, 'unsubscribed')", person)
        connection.execute("select pgmail.erase(%s, 'gdpr')", person)
        kit.send(connection, "gone@example.org")
        hand = kit.Hand(connection)
        assert hand.settle(hand.claim(), "bounced", suppress=True) == ["settled"]
        migrate.downgrade(empty_db.dsn, "0002", confirmed=True)
        listed = connection.execute("select reason from pgmail.suppression order by 1").fetchall()
        assert listed == [("bounced",), ("unsubscribed",)]
        migrate.upgrade(empty_db.dsn, prefix=PREFIX)
        assert kit.state(connection, kit.send(connection, person[0])) == "suppressed"
        assert kit.state(connection, kit.send(connection, "gone@example.org")) == "suppressed"


def test_a_second_upgrade_changes_no_table_and_says_so(empty_db):
    migrate.upgrade(empty_db.dsn, prefix=PREFIX)
    again = migrate.upgrade(empty_db.dsn, prefix=PREFIX)
    assert not [line for line in again if "migration" in line or "schema" in line]
    assert again[-1] == f"roles {PREFIX}* are set up"


def test_upgrades_at_the_same_moment_take_turns(empty_db):
    with ThreadPoolExecutor(3) as threads:
        done = list(threads.map(lambda _: migrate.upgrade(empty_db.dsn, prefix=PREFIX), range(3)))
    assert sorted("applied migration 0001" in lines for lines in done) == [False, False, True]


def test_two_databases_of_one_cluster_share_roles_or_have_their_own(db, empty_db, other_prefix):
    migrate.upgrade(empty_db.dsn, prefix=PREFIX)
    assert migrate.upgrade(empty_db.dsn, prefix=other_prefix)[-1] == f"roles {other_prefix}* are set up"
    for database in (db, empty_db):
        with database.connect("reader") as connection:
            assert connection.execute("select version from pgmail.schema_version").fetchone() == (
                schema.SCHEMA_VERSION,
            )
    assert migrate.check(db.dsn).compatible


def test_a_missing_right_to_create_a_schema_is_one_line_that_an_administrator_can_run(empty_db, weak_role):
    name, dsn = weak_role
    with pytest.raises(Refused) as caught:
        migrate.upgrade(dsn, prefix=PREFIX)
    assert caught.value.status == 403
    assert "\n" not in str(caught.value)
    statement = str(caught.value).split("runs: ")[1]
    assert statement == f'grant create on database "{empty_db.name}" to "{name}"'
    with psycopg.connect(empty_db.superuser_dsn, autocommit=True) as connection:
        connection.execute(statement)
    migrate.upgrade(dsn, prefix=PREFIX)


def test_an_owner_who_may_not_create_roles_gets_a_schema_without_and_the_way_to_them(
    empty_db, weak_role, other_prefix
):
    name, dsn = weak_role
    with psycopg.connect(empty_db.superuser_dsn, autocommit=True) as admin:
        admin.execute(
            sql.SQL("grant create on database {} to {}").format(
                sql.Identifier(empty_db.name), sql.Identifier(name)
            )
        )
        done = migrate.upgrade(dsn, prefix=other_prefix)
        assert "CREATEROLE" in done[-1]
        assert "`pgmail db roles --sql`" in done[-1]
        assert "\n" not in done[-1]
        assert migrate.check(dsn).compatible
        admin.execute(migrate.roles_sql(other_prefix).encode())
    assert migrate.upgrade(dsn, prefix=other_prefix)[-1] == f"roles {other_prefix}* are set up"


def test_another_roles_schema_is_refused_in_one_line(db):
    with pytest.raises(Refused, match="as the owner of the schema pgmail") as caught:
        migrate.upgrade(db.dsn_for("reader"), prefix=PREFIX)
    assert "\n" not in str(caught.value)


def test_a_lock_that_is_not_to_be_had_changes_nothing(db, monkeypatch):
    monkeypatch.setattr(migrate, "LOCK_TIMEOUT_SECONDS", 0.1)
    monkeypatch.setattr(migrate, "PATIENCE_SECONDS", 0.0)
    with db.connect(autocommit=False) as holder:
        holder.execute("lock table pgmail.queue in access share mode")
        with pytest.raises(Refused, match="try again") as caught:
            migrate.downgrade(db.dsn, "base", confirmed=True)
        assert caught.value.status == 503
    assert migrate.check(db.dsn).compatible


def test_a_downgrade_that_would_destroy_something_wants_to_be_confirmed(db):
    with db.connect() as connection:
        connection.execute(
            "insert into pgmail.suppression (tenant_id, address, reason) values (1, 'a@b.example', 'manual')"
        )
    with pytest.raises(Refused, match="confirm") as caught:
        migrate.downgrade(db.dsn, "base")
    assert caught.value.status == 409
    assert migrate.check(db.dsn).compatible
    migrate.downgrade(db.dsn, "base", confirmed=True)
    assert migrate.check(db.dsn).version is None


def test_what_pgmail_did_not_make_survives_a_downgrade_or_stops_it(db):
    with db.connect() as connection:
        connection.execute("create table public.alembic_version (version_num text)")
        connection.execute("create table public.mine (id uuid default pgmail.uuid7())")
        migrate.downgrade(db.dsn, "base")
        left = objects(connection)
    assert {"r mine", "r alembic_version"} <= left
    assert "schema pgmail" not in left


def test_an_applications_own_alembic_table_is_neither_read_nor_changed(empty_db):
    with empty_db.connect() as connection:
        connection.execute("create table public.alembic_version (version_num text)")
        connection.execute("insert into public.alembic_version values ('theirs')")
        migrate.upgrade(empty_db.dsn, prefix=PREFIX)
        assert connection.execute("table public.alembic_version").fetchall() == [("theirs",)]
        assert connection.execute("table pgmail.alembic_version").fetchall() == [("0005",)]


def test_a_schema_that_refuses_this_program_says_what_to_do(db):
    with db.connect() as connection:
        connection.execute("update pgmail.schema_version set version = 9, compatible_from = 8")
    state = migrate.check(db.dsn)
    with pytest.raises(SchemaMismatch, match="install a newer pgmail"):
        state.require()
    with pytest.raises(SchemaMismatch, match="newer than this program"):
        migrate.upgrade(db.dsn, prefix=PREFIX)


def test_a_newer_schema_that_lets_this_program_in_is_fine(db):
    with db.connect() as connection:
        connection.execute("update pgmail.schema_version set version = 9")
    assert migrate.check(db.dsn).compatible


def test_a_program_that_refuses_an_old_schema_says_what_to_do(db, monkeypatch):
    monkeypatch.setattr(schema, "NEEDS_FROM", schema.SCHEMA_VERSION + 1)
    with pytest.raises(SchemaMismatch, match="pgmail db upgrade"):
        migrate.check(db.dsn).require()


def test_a_database_without_pgmail_is_told_apart_and_a_downgrade_of_it_is_nothing(empty_db):
    assert "no pgmail schema" in migrate.check(empty_db.dsn).problem
    assert migrate.downgrade(empty_db.dsn, "base") == ["the database holds no pgmail schema; nothing to do"]


def test_an_unreachable_database_is_away_in_one_line(unused_tcp_port):
    dsn = f"postgresql://nobody@127.0.0.1:{unused_tcp_port}/nothing?connect_timeout=2"
    for act in (migrate.check, lambda dsn: migrate.upgrade(dsn, prefix=PREFIX)):
        with pytest.raises(DatabaseAway) as caught:
            act(dsn)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("prefix", ["Pg", "1a", "a-b", "a b", 'a"; drop', "a" * 33, "", "pg_"])
def test_a_prefix_that_is_no_plain_name_is_refused(prefix):
    with pytest.raises(SettingsError):
        migrate.roles_sql(prefix)


def test_every_pair_of_migration_files_has_its_version_in_alembic():
    versions = {path.stem for path in (sqlfiles.alembic_folder() / "versions").glob("*.py")}
    assert versions == {step.name for step in sqlfiles.migrations()}
    assert max(step.number for step in sqlfiles.migrations()) == schema.SCHEMA_VERSION


def test_no_sql_stands_in_the_migrations_python():
    text = Path(migrate.__file__).read_text(encoding="utf-8")
    assert not re.search(r"\.execute\(\s*[\"'f]", text)


def test_a_database_of_another_encoding_is_refused_in_one_line(server, server_admin):
    server_admin.execute("create database latin template template0 encoding 'LATIN1' locale 'C'")
    try:
        with pytest.raises(Refused, match="UTF8") as refused:
            migrate.upgrade(server.dsn("latin"), prefix="pgmail_")
        assert refused.value.code == "wrong_encoding"
    finally:
        server_admin.execute("drop database latin with (force)")
