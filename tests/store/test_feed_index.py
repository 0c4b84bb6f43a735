"""A full installation that is upgraded: the feed's indexes are made beside mail, one partition after the other."""

import psycopg
import pytest

from pgmail.store import migrate
from tests.fix_db import PREFIX
from tests.sql.kit import one, rows, send
from tests.store.test_upgrade_under_load import install

PARTS = "select count(*) from pg_inherits where inhparent in ('pgmail.message'::regclass, 'pgmail.event'::regclass)"
ATTACHED = PARTS.replace("message'", "message_feed'").replace("event'", "event_feed'")
WHOLE = "select whole from pgmail.feed_now_v1()"


@pytest.fixture
def full_db(empty_db, monkeypatch):
    """A database of the version before, with mail in this week's partition and in the default one."""
    install(empty_db, monkeypatch, 4)
    with empty_db.connect() as connection:
        email = send(connection)
        connection.execute("select pgmail.cancel(%s)", [email])
        connection.execute(
            "insert into pgmail.message select (jsonb_populate_record(m, x)).* from pgmail.message m, "
            "jsonb_build_object('id', pgmail.uuid_floor('2020-01-01')) x"
        )
    return empty_db


def upgrade(db):
    told = []
    done = migrate.upgrade(db.dsn, prefix=PREFIX, roles=False, tell=told.append)
    return done, told


def test_partitions_with_rows_get_theirs_after_the_upgrades_transaction(full_db):
    done, told = upgrade(full_db)
    assert "made the index of the feed over 3 partitions" in done
    assert [line for line in told if "mail goes on" in line] == told
    assert len(told) == 3
    with full_db.connect() as connection:
        assert one(connection, WHOLE) is True
        assert one(connection, ATTACHED) == one(connection, PARTS)
        assert one(connection, "select count(*) from pgmail.message where xid is null") == 2, (
            "mail of before has none"
        )
        start = one(connection, "select pg_current_snapshot()::text")
        send(connection)
        assert (
            one(
                connection,
                "select count(*) from pgmail.feed_v1(%s, pg_current_snapshot(), null, null, null, null)",
                [start],
            )
            == 1
        )
    assert upgrade(full_db)[1] == [], "a second upgrade makes nothing"


def test_what_is_in_use_is_left_for_the_next_upgrade_and_mail_goes_on(full_db, monkeypatch):
    monkeypatch.setattr(migrate, "INDEX_PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(migrate, "LOCK_TIMEOUT_SECONDS", 0.4)
    first, real = [], migrate._index_feed

    def held(dsn, tell):
        """Somebody has written and not ended, in the very moment between the upgrade's transaction and the indexes."""
        if not first:
            first.append(psycopg.connect(full_db.dsn))
            send(first[0])
        return real(dsn, tell)

    monkeypatch.setattr(migrate, "_index_feed", held)
    try:
        done, _ = upgrade(full_db)
        assert any("answer 503" in line and "was in use" in line for line in done), done
        with full_db.connect() as connection:
            assert one(connection, WHOLE) is False
            send(connection)
            # New partitions come as they should meanwhile.
            connection.execute("select pgmail.make_partitions_v1(60)")
            assert one(connection, WHOLE) is False
        first[0].commit()
    finally:
        first[0].close()
    done, _ = upgrade(full_db)
    assert any(line.startswith("made the index of the feed") for line in done)
    with full_db.connect() as connection:
        assert one(connection, WHOLE) is True
        assert rows(connection, "select indexrelid::regclass from pg_index where not indisvalid") == []


def test_the_upgrade_can_be_taken_back_half_way(full_db, monkeypatch):
    monkeypatch.setattr(migrate, "_index_feed", lambda *_: (0, []))
    upgrade(full_db)
    with full_db.connect() as connection:
        assert one(connection, WHOLE) is False
    migrate.downgrade(full_db.dsn, "0004", confirmed=True)
    monkeypatch.undo()
    upgrade(full_db)
    with full_db.connect() as connection:
        assert one(connection, WHOLE) is True
