"""Keys in SQL: the API's role may manage them for a living admin key only, whatever it says of itself."""

import psycopg
import pytest
from psycopg.types.json import Jsonb

from pgmail.domain.keys import make_key
from pgmail.store import migrate
from tests.fix_db import PREFIX
from tests.sql import kit

pytestmark = pytest.mark.one_server


def make(connection, *, name="key", **limits):
    _, hint, hash_ = make_key(test=limits.get("test", False))
    return kit.one(
        connection, "select id from pgmail.make_key(%s, %s, %s, %s)", [name, hint, hash_, Jsonb(limits)]
    )


def acting(db, key, tenant=1):
    """The API's connection, in a transaction that acts for a key."""
    connection = db.connect("api", autocommit=False)
    settings = "set_config('pgmail.tenant', %s, true), set_config('pgmail.key', %s, true)"
    connection.execute(f"select {settings}", [str(tenant), str(key or "")])
    return connection


def shut(connection):
    """Each way to manage keys is refused."""
    for call in (
        "list_keys()",
        "revoke_key(gen_random_uuid())",
        "make_key('x', 'pgm_live_', sha256('x'), '{}')",
        "rotate_key(gen_random_uuid(), 'pgm_live_', sha256('x'), '1 h')",
    ):
        with pytest.raises(psycopg.Error) as caught, connection.transaction():
            connection.execute(f"select pgmail.{call}")
        assert (caught.value.sqlstate, caught.value.diag.constraint_name) == ("PM403", "missing_scope"), call


def test_the_apis_role_manages_no_key_without_a_living_admin_key(db, owner):
    shut(acting(db, None))
    shut(acting(db, make(owner, scopes=["send", "read", "manage"])))
    boss = make(owner, scopes=["admin"])
    assert len(kit.rows(acting(db, boss), "select * from pgmail.list_keys()")) == 2
    owner.execute("select pgmail.create_tenant('neighbour')")
    shut(acting(db, boss, tenant=2))
    owner.execute("update pgmail.api_key set expires_at = pgmail.now() where id = %s", [boss])
    shut(acting(db, boss))
    boss = make(owner, scopes=["admin"])
    owner.execute("select pgmail.revoke_key(%s)", [boss])
    shut(acting(db, boss))


def test_a_key_that_ends_in_the_middle_of_a_transaction_ends_in_it(db, owner):
    boss = make(owner, scopes=["admin"])
    connection = acting(db, boss)
    make(connection, name="before")
    owner.execute("select pgmail.revoke_key(%s)", [boss])
    shut(connection)


def test_no_other_role_is_believed_which_key_it_acts_for(db, owner, app):
    limited = make(owner, scopes=["admin"], networks=["192.0.2.1"])
    with db.connect("admin") as admin:
        admin.execute("select set_config('pgmail.key', %s, false)", [str(limited)])
        assert make(admin)  # as itself, within no limits
    app.execute("select set_config('pgmail.key', %s, false)", [str(limited)])
    for mail in (kit.send(app), kit.send(app, ["a@example.org", "b@example.org"])):
        assert kit.one(owner, "select api_key from pgmail.message where id = %s", [mail]) is None


def test_an_email_knows_the_key_that_handed_it_over(db, owner):
    key = make(owner)
    with acting(db, key) as connection:
        mails = [kit.send(connection), kit.send(connection, ["a@example.org", "b@example.org"])]
        found = kit.rows(connection, "select stream, own from pgmail.reach_v1(%s)", [mails])
        assert found == [("transactional", True)] * 2
    assert kit.rows(owner, "select distinct api_key from pgmail.message") == [(key,)]


def test_an_api_of_before_knows_no_key_with_limits(db, owner):
    def known(version):
        return kit.rows(
            db.connect("api"),
            f"select k.name from unnest(%s::bytea[]) h, pgmail.check_key_v{version}(h) k order by 1",
            [[hash_ for (hash_,) in kit.rows(owner, "select hash from pgmail.api_key")]],
        )

    make(owner, name="plain")
    make(owner, name="admin", scopes=["send", "read", "manage", "admin"])
    for number, limits in enumerate(
        (
            {"scopes": ["send"]},
            {"test": True},
            {"streams": ["transactional"]},
            {"from_domains": ["example.com"]},
            {"networks": ["10.0.0.0/8"]},
        )
    ):
        make(owner, name=f"limited {number}", **limits)
    assert known(1) == [("admin",), ("plain",)]
    assert len(known(2)) == 7
    owner.execute("update pgmail.api_key set expires_at = pgmail.now() where name = 'plain'")
    assert known(1) == [("admin",)]


def test_keys_with_limits_end_when_the_schema_goes_back(db, owner):
    make(owner, name="plain")
    make(owner, name="limited", scopes=["send"])
    migrate.downgrade(db.dsn, "0003", confirmed=True)
    assert kit.rows(owner, "select name from pgmail.api_key where revoked_at is null") == [("plain",)]
    migrate.upgrade(db.dsn, prefix=PREFIX)
    assert kit.rows(owner, "select scopes from pgmail.api_key where name = 'plain'") == [
        (["send", "read", "manage"],)
    ]


def test_limits_that_are_none_are_refused_in_sql_too(owner):
    for limits, field in (
        ({"scopes": ["root"]}, "/scopes/0"),
        ({"scopes": "send"}, "/scopes"),
        ({"scopes": [1]}, "/scopes"),
        ({"streams": ["none"]}, "/streams/0"),
        ({"from_domains": ["*.com.*"]}, "/from_domains/0"),
        ({"networks": ["10.0.0.1/8"]}, "/networks/0"),
        ({"expires_at": "infinity"}, "/expires_at"),
        ({"expires_at": "2020-01-01"}, "/expires_at"),
        ({"test": 1}, "/test"),
        ({"limits": 1}, "/limits"),
    ):
        with pytest.raises(psycopg.Error) as caught:
            make(owner, **limits)
        assert kit.refusal(caught.value).field == field


def test_a_key_that_was_rotated_does_not_reach_what_its_follower_sends(db, owner):
    line = [make(owner, scopes=["send"])]
    for _ in range(2):
        _, hint, hash_ = make_key()
        rotate = "select id from pgmail.rotate_key(%s, %s, %s, interval '1 day')"
        line.append(kit.one(owner, rotate, [line[-1], hint, hash_]))
    mails = []
    for key in line:
        with acting(db, key) as connection:
            mails.append(kit.send(connection))
    for number, key in enumerate(line):
        with acting(db, key) as connection:
            for other, mail in enumerate(mails):
                own = kit.one(connection, "select own from pgmail.reach_v1(%s)", [[mail]])
                assert own == (other <= number), (number, other)
