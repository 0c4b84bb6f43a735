"""Row-level security, from the catalogue: on, forced and with policies on every table and partition, new ones too."""

import psycopg
import pytest

from pgmail.store import migrate
from tests.fix_db import PREFIX
from tests.sql import kit

# Rows of no tenant: the fleet's, what all tenants share, and the version. Whatever else there is has a tenant_id.
FLEET = {
    *(
        "relay",
        "worker",
        "leader",
        "schema_version",
        "site_domain",
        "history",
        "witness",
        "fence",
        "retention",
        "session_secret",
    ),
    *("hook_cursor", "feed_home"),
    *("alert_horizon", "lost_worker", "certificate"),
    *("reply_reason", "reply_rule", "reply_pattern", "limits", "bucket", "permit", "tenant"),
    *("worker_key", "guess"),
    "insight_cursor",
}
# Those of them that say `true` to a role which speaks for a tenant; `limits` and `tenant` have conditions of their own.
SEES_ALL = {"worker", "maintain", "admin"}


def unsecured(connection):
    """Tables and partitions that fail: row-level security off, not forced, or without the owner's own policy."""
    found = kit.rows(
        connection,
        """
        select c.relname from pg_class c
        where c.relnamespace = 'pgmail'::regnamespace and c.relkind in ('r', 'p') and c.relname <> 'alembic_version'
          and not (c.relrowsecurity and c.relforcerowsecurity and exists (
            select from pg_policy p where p.polrelid = c.oid and p.polroles = array[c.relowner] and p.polcmd = '*'
              and pg_get_expr(p.polqual, c.oid) = 'true' and pg_get_expr(p.polwithcheck, c.oid) = 'true'))
        order by 1
        """,
    )
    return [name for (name,) in found]


def leaky_policies(connection):
    """Policies for a role that speaks for a tenant which do not ask for the tenant; and those that name nobody."""
    return kit.rows(
        connection,
        """
        select c.relname, p.polname from pg_policy p join pg_class c on c.oid = p.polrelid
        where c.relnamespace = 'pgmail'::regnamespace and c.relname <> all (%(fleet)s) and p.polname <> 'owner'
          and (0 = any (p.polroles) or p.polcmd <> 'r'
               or (exists (select from pg_roles r where r.oid = any (p.polroles) and r.rolname <> all (%(all)s))
                   and pg_get_expr(p.polqual, p.polrelid) not like '%%current_tenant()%%'))
        order by 1, 2
        """,
        {"fleet": sorted(FLEET), "all": [PREFIX + role for role in SEES_ALL]},
    )


def test_row_level_security_is_forced_on_every_table_and_partition(owner):
    assert unsecured(owner) == []


def test_a_new_table_and_a_new_partition_without_a_policy_are_found(owner):
    owner.execute("create table pgmail.fresh (tenant_id integer)")
    owner.execute("create table pgmail.message_late partition of pgmail.message for values from"
                  " ('ffffffff-0000-0000-0000-000000000000') to (maxvalue)")  # fmt: skip
    owner.execute("alter table pgmail.fresh enable row level security")
    assert unsecured(owner) == ["fresh", "message_late"]


def test_the_next_upgrade_secures_what_is_new_and_touches_nothing_else(db, owner):
    owner.execute("create table pgmail.fresh (tenant_id integer)")
    before = kit.rows(owner, "select oid, xmin::text from pg_policy order by oid")
    migrate.upgrade(db.dsn, prefix=PREFIX)
    assert unsecured(owner) == []
    after = kit.rows(owner, "select oid, xmin::text from pg_policy order by oid")
    assert set(before) <= set(after)


def test_partitions_made_later_are_secured_by_who_makes_them(db, owner):
    worker = db.connect("worker")
    made = kit.one(worker, "select pgmail.make_partition_v2(60)")
    assert made is not None
    assert unsecured(owner) == []


def test_no_policy_for_a_tenants_role_forgets_the_tenant(owner):
    assert leaky_policies(owner) == []


def test_a_policy_that_forgets_the_tenant_or_names_nobody_is_found(owner):
    owner.execute(f"create policy wide on pgmail.message for select to {PREFIX}reader using (true)")
    owner.execute(
        "create policy everybody on pgmail.queue for select using (tenant_id = pgmail.current_tenant())"
    )
    assert leaky_policies(owner) == [("message", "wide"), ("queue", "everybody")]


def test_every_table_says_whose_rows_it_holds(owner):
    nameless = kit.rows(
        owner,
        "select relname from pg_class c where relnamespace = 'pgmail'::regnamespace and relkind in ('r', 'p')"
        " and not relispartition and relname <> 'alembic_version' and not exists (select from pg_attribute a"
        " where a.attrelid = c.oid and a.attname = 'tenant_id' and not a.attisdropped) order by 1",
    )  # fmt: skip
    assert {name for (name,) in nameless} <= FLEET


def test_forcing_means_the_owner_too(db, owner):
    kit.send(db.connect("producer"))
    owner.execute("drop policy owner on pgmail.message")
    assert kit.count(owner, "message") == 0
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        kit.send(db.connect("producer"))


GIVE_AWAY = """
do $$ declare o record; begin
  for o in select c.oid::regclass as t from pg_class c
           where relnamespace = 'pgmail'::regnamespace and relkind in ('r', 'p', 'v', 'S')
             and (c.relkind <> 'S' or not exists (select from pg_depend where objid = c.oid and deptype in ('a', 'i')))
  loop
    execute format('alter table %s owner to {0}', o.t);
  end loop;
  for o in select oid::regprocedure as f from pg_proc where pronamespace = 'pgmail'::regnamespace loop
    execute format('alter function %s owner to {0}', o.f);
  end loop;
end $$"""


def test_a_database_restored_under_another_owner_is_put_right_by_an_upgrade(db, owner, server_admin):
    mail = kit.send(owner)
    other = f"{db.name}_owner"
    server_admin.execute(f"create role {other} login createrole password '{db.server.role_password}'")
    try:
        server_admin.execute(f"grant {PREFIX}owner to {other}")
        with psycopg.connect(db.superuser_dsn, autocommit=True) as admin:
            admin.execute(f"alter schema pgmail owner to {other}")
            admin.execute(GIVE_AWAY.format(other))
            admin.execute(f"revoke {PREFIX}owner from {other}")
        assert kit.one(owner, "select 1") == 1
        migrate.upgrade(db.server.dsn(db.name, other), prefix=PREFIX, roles=False)
        assert unsecured(owner) == []
        with db.connect("producer") as app:
            assert kit.states(app, mail) == ["queued"]
    finally:
        with psycopg.connect(db.superuser_dsn, autocommit=True) as admin:
            admin.execute(f"drop owned by {other} cascade")
        server_admin.execute(f"drop role {other}")
