"""Who is there in most tests of the SQL: an application and two workers moved by hand."""

import psycopg
import pytest
from psycopg import sql

from tests.fix_db import PREFIX
from tests.sql.kit import Hand


@pytest.fixture
def hand(db):
    return Hand(db.connect("worker"))


@pytest.fixture
def other(db):
    return Hand(db.connect("worker"))


@pytest.fixture
def admin(db):
    """An operator, who waits for nobody's lock."""
    connection = db.connect("admin")
    connection.execute("set lock_timeout = '50ms'")
    return connection


@pytest.fixture
def role_of_tenant(db, owner, server_admin):
    """Make a database role that speaks for a tenant and connect as it; they go with the test."""
    made = []

    def connect(tenant, kind, *, content=False):
        name = f"{tenant}_{kind}_{db.name[-8:]}_{len(made)}"
        made.append(name)
        owner.execute(
            "select pgmail.make_tenant_role(%s, %s, %s, %s, %s)", [PREFIX, name, tenant, kind, content]
        )
        server_admin.execute(
            sql.SQL("alter role {} password {}").format(sql.Identifier(name), db.server.role_password)
        )
        connection = psycopg.connect(db.server.dsn(db.name, name), autocommit=True)
        db._open.append(connection)
        return connection

    yield connect
    db.close()
    with psycopg.connect(db.superuser_dsn, autocommit=True) as admin:
        for name in made:
            admin.execute(sql.SQL("drop owned by {}").format(sql.Identifier(name)))
            admin.execute(sql.SQL("drop role {}").format(sql.Identifier(name)))
