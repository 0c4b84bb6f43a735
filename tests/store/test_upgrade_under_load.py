"""An upgrade while mail flows: workers of the version before go on, applications hardly notice, nothing is lost.

`version_2/` holds functions and roles as they were with schema 2, so that the database is what workers of then had.
"""

import threading
import time
from pathlib import Path

import psycopg
import pytest

from pgmail.store import migrate
from tests.fix_db import PREFIX
from tests.sql import kit
from tests.sql.kit import Hand
from tests.waiting import eventually
from tests.worker.kit import Crew

OLD = Path(__file__).parent / "version_2"


@pytest.fixture
def old_db(empty_db, monkeypatch):
    """A database of schema 2, with functions and rights of then."""
    with monkeypatch.context() as patched:
        patched.setattr(migrate.sqlfiles, "functions", lambda: [OLD / "functions.sql"])
        patched.setattr(
            migrate,
            "roles_sql",
            lambda prefix: (OLD / "roles.sql").read_text("utf-8").replace("{prefix}", prefix),
        )
        done = migrate.upgrade(empty_db.dsn, prefix=PREFIX, revision="0002")
    assert done[-1] == f"roles {PREFIX}* are set up"
    return empty_db


class Busy:
    """Someone who does the same again and again in a thread, and remembers what went wrong and how long it took."""

    def __init__(self, connection, act):
        self.connection, self._act = connection, act
        self.errors: list[tuple[float, str]] = []
        self.slowest = 0.0
        self.done = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _run(self):
        while not self._stop.wait(0.005):
            began = time.monotonic()
            try:
                self.done += self._act(self.connection) or 0
            except psycopg.Error as error:
                self.errors.append((began, str(error)))
            self.slowest = max(self.slowest, time.monotonic() - began)


def send_one(connection):
    kit.send(connection)
    return 1


def work_as_of_old(hand):
    """Beat, fold, claim and settle by the functions that workers of 0.1 call."""

    def act(connection):
        assert kit.one(connection, "select pgmail.worker_beat_v1(%s, 'running', false)", [hand.epoch])
        hand.fold()
        leases = hand.claim_as_of_old(50)
        return len([x for x in hand.settle(leases) if x == "settled"]) if leases else 0

    return act


@pytest.fixture
async def crew(old_db, sink):
    made = Crew(old_db, sink)
    yield made
    await made.dismiss()


async def test_an_upgrade_under_load_stops_nobody_and_loses_nothing(old_db, crew):
    app, owner = old_db.connect("producer"), old_db.connect()
    hand = Hand(old_db.connect("worker"))
    with Busy(app, send_one) as sender, Busy(hand.connection, work_as_of_old(hand)) as old:
        await eventually(lambda: sender.done > 20 and old.done > 20)
        with old_db.connect("producer", autocommit=False) as guest:
            kit.send(guest, "guest@example.org")  # holds what an ALTER TABLE wants
            upgrade = threading.Thread(target=lambda: migrate.upgrade(old_db.dsn, prefix=PREFIX))
            upgrade.start()
            waits = (
                "select count(*) from pg_locks where not granted and mode = 'AccessExclusiveLock'"
                " and database = (select oid from pg_database where datname = current_database())"
            )
            await eventually(lambda: kit.one(owner, waits))
            before = sender.done
            await eventually(lambda: sender.done > before + 20, what="sending beside an upgrade that waits")
            assert migrate.check(old_db.dsn).version == 2
            guest.commit()
        upgrade.join()
        assert migrate.check(old_db.dsn).version == migrate.check(old_db.dsn).program_version
        upgraded_at, before = time.monotonic(), old.done
        await crew.hire()
        await eventually(lambda: old.done > before + 20, what="an old worker settling in the new schema")
        await eventually(lambda: kit.one(owner, "select count(*) from pgmail.event where relay = 'default'"))
    assert sender.errors == []
    assert [said for at, said in old.errors if at > upgraded_at] == []
    assert sender.slowest < 5.0
    hand.release([])
    kit.one(owner, "select pgmail.rescue_v1(%s)", [hand.epoch])
    await eventually(lambda: kit.count(owner, "queue") == 0)
    assert kit.differences(owner) == [0]
    sent, enqueued = kit.rows(owner, "select sent, enqueued from pgmail.ledger")[0]
    assert sent == enqueued == sender.done + 1


def test_an_upgrade_that_changes_nothing_locks_no_table_of_mail(db):
    migrate.upgrade(db.dsn, prefix=PREFIX)
    with db.connect("producer", autocommit=False) as guest, db.connect("worker", autocommit=False) as working:
        kit.send(guest)
        working.execute("select * from pgmail.queue")
        began = time.monotonic()
        migrate.upgrade(db.dsn, prefix=PREFIX)
        assert time.monotonic() - began < migrate.PATIENCE_SECONDS / 2
