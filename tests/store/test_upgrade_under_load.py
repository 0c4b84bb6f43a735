"""An upgrade while mail flows: workers of the version before go on, applications hardly notice, nothing is lost.

`version_2/` and `version_4/` hold functions and roles as they were with those schemas, so that the database is what
workers of then had.
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

HERE = Path(__file__).parent


def install(empty, monkeypatch, version):
    """A database as a program of then made it: its tables, functions and rights."""
    old = HERE / f"version_{version}"
    with monkeypatch.context() as patched:
        patched.setattr(migrate.sqlfiles, "functions", lambda: [old / "functions.sql"])
        patched.setattr(
            migrate,
            "roles_sql",
            lambda prefix: (old / "roles.sql").read_text("utf-8").replace("{prefix}", prefix),
        )
        done = migrate.upgrade(empty.dsn, prefix=PREFIX, revision=f"{version:04}")
    assert f"roles {PREFIX}* are set up" in done
    return empty


@pytest.fixture(params=[2, 4])
def version(request):
    return request.param


@pytest.fixture
def old_db(empty_db, monkeypatch, version):
    """A database of an older schema, with functions and rights of then."""
    return install(empty_db, monkeypatch, version)


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


async def test_an_upgrade_under_load_stops_nobody_and_loses_nothing(old_db, crew, version):
    app, owner = old_db.connect("producer"), old_db.connect()
    hand = Hand(old_db.connect("worker"))
    with Busy(app, send_one) as sender, Busy(hand.connection, work_as_of_old(hand)) as old:
        await eventually(lambda: sender.done > 20 and old.done > 20)
        with old_db.connect("producer", autocommit=False) as guest:
            kit.send(guest, "guest@example.org")  # holds what an ALTER TABLE wants
            upgrade = threading.Thread(target=lambda: migrate.upgrade(old_db.dsn, prefix=PREFIX))
            upgrade.start()
            waits = (
                f"select count(*) from {kit.LOCKS_HERE} where not granted and mode = 'AccessExclusiveLock'"
            )
            await eventually(lambda: kit.one(owner, waits))
            before = sender.done
            await eventually(lambda: sender.done > before + 20, what="sending beside an upgrade that waits")
            assert migrate.check(old_db.dsn).version == version
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
    kit.one(owner, "select pgmail.gauge_states_v1()")  # depths of before are learned from the queue
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


CALLED = """
select p.oid::regprocedure::text, pg_get_function_result(p.oid), p.proargnames::text, p.provolatile::text
from pg_proc p where p.pronamespace = 'pgmail'::regnamespace and p.proname ~ '_v[0-9]+$'
"""


@pytest.mark.parametrize("version", [4], indirect=True)
def test_what_programs_of_before_call_is_there_as_it_was(old_db):
    owner = old_db.connect()
    before = {row[0]: row[1:] for row in kit.rows(owner, CALLED)}
    migrate.upgrade(old_db.dsn, prefix=PREFIX)
    after = {row[0]: row[1:] for row in kit.rows(owner, CALLED)}
    assert {name: after.get(name) for name in before} == before


@pytest.mark.parametrize("version", [4], indirect=True)
def test_after_an_upgrade_of_a_full_queue_ledger_and_depths_are_right_whatever_is_done_next(old_db):
    app, owner, admin = old_db.connect("producer"), old_db.connect(), old_db.connect("admin")
    hand = Hand(old_db.connect("worker"))
    made = kit.send_many(app, [kit.body(f"p{n}@site{n % 7}.example") for n in range(600)])
    hand.fold()
    dead = hand.claim(10)
    assert set(hand.settle(dead, "dead", error="no such template")) == {"settled"}
    assert kit.count(owner, "tally") > 0  # not folded: without lanes, as programs of then counted
    migrate.upgrade(old_db.dsn, prefix=PREFIX)
    owner.execute("select pgmail.fold_tallies_v1(1)")
    assert kit.one(owner, "select pgmail.gauge_states_v1()") == kit.count(owner, "queue") == 600 - len(dead)
    assert kit.misplaced(owner) == []
    for lease in dead[:20]:
        admin.execute("select pgmail.retry(%s)", [lease.message_id])
    admin.execute("select pgmail.discard(%s, 'not wanted')", [dead[30].message_id])
    admin.execute("select pgmail.cancel(%s)", [made[-1][1]])
    sent = hand.claim(20)
    assert set(hand.settle(sent)) == {"settled"}
    kept = hand.claim(5)
    kit.one(owner, "select pgmail.rescue_v1(%s)", [hand.epoch])
    assert kept
    assert kit.misplaced(owner) == []
    while kit.one(owner, "select pgmail.fold_tallies_v1(3)"):
        assert kit.misplaced(owner) == []
    assert kit.one(owner, "select pgmail.gauge_states_v1()") == 0
    assert kit.differences(owner) == [0]
