"""A witness remembers outside the database what it saw committed, and knows a restored copy by it."""

import asyncio
import json
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest
import structlog
from psycopg import sql

from pgmail.errors import Refused
from pgmail.store import history
from pgmail.store.database import Database as Pool
from pgmail.store.history import Witness
from pgmail.store.statefile import Place, default_folder
from tests.fix_db import PREFIX, Database
from tests.sql.kit import LOCKS_HERE, body, one, send_many
from tests.waiting import eventually


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def meet(folder):
    """Give a witness one new connection; the witness, which has let its file go."""

    async def greet(dsn, witness=None, *, close=True, folder=folder):
        witness = witness or Witness("worker", str(folder))
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            await witness.greet(connection)
        if close:
            await witness.stop()
        return witness

    return greet


@pytest.fixture
def backup(db, server_admin):
    """Copies of the test's database as it is now: `backup()` makes one and answers it."""
    made = []

    def copy() -> Database:
        name = f"{db.name}_{len(made)}"
        db.close()
        server_admin.execute(
            sql.SQL("create database {} template {} owner {} strategy wal_log").format(
                sql.Identifier(name), sql.Identifier(db.name), sql.Identifier(PREFIX + "owner")
            )
        )
        made.append(Database(name, db.server))
        return made[-1]

    yield copy
    for database in made:
        database.close()
        server_admin.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(database.name)))


async def test_connections_that_come_at_once_are_one_witness(db, folder):
    witness = Witness("worker", str(folder))
    pool = Pool(db.dsn_for("worker"), name="t", low=8, high=8, greet=witness.greet)
    other = Pool(db.dsn_for("worker"), name="t", low=4, high=4, greet=witness.greet)
    try:
        await pool.open()
        await other.open()
        with db.connect() as connection:
            marks = "select coalesce(sum(marks), 0) from pgmail.witness"
            await eventually(lambda: one(connection, marks) >= 12)
            assert one(connection, "select count(*) from pgmail.witness") == 1
    finally:
        await pool.close()
        await other.close()
        await witness.stop()
    assert witness.clear


async def test_a_restored_copy_is_known_by_the_next_process_of_the_host(db, meet, backup):
    assert (await meet(db.dsn_for("worker"))).clear
    copy = backup()
    assert (await meet(db.dsn_for("worker"))).clear  # work goes on
    with structlog.testing.capture_logs() as logs:
        witness = await meet(copy.dsn_for("worker"))
    assert not witness.clear
    assert "saw more than is here" in witness.fence
    assert [log["event"] for log in logs] == ["sending.stopped"]
    with copy.connect() as connection:
        assert one(connection, "select lost_from < lost_until from pgmail.fence") is True


async def test_a_copy_that_lost_nothing_is_no_restore(db, meet, backup):
    """An upgrade by dump and restore, or a failover to a standby that has everything."""
    await meet(db.dsn_for("worker"))
    copy = backup()
    assert (await meet(copy.dsn_for("worker"))).clear
    assert (await meet(copy.dsn_for("api"))).clear


async def test_a_process_that_runs_on_knows_it_with_its_first_new_connection(db, meet, backup, tmp_path):
    unwritable = tmp_path / "file"
    unwritable.write_text("not a folder")
    with structlog.testing.capture_logs() as logs:
        witness = await meet(db.dsn_for("worker"), close=False, folder=unwritable)
    assert [log["event"] for log in logs] == ["history.no_file"]
    copy = backup()
    await meet(db.dsn_for("worker"), witness, close=False)
    await meet(copy.dsn_for("worker"), witness)
    assert witness.fence


async def test_every_process_of_the_host_is_asked_the_living_and_the_dead(db, meet, backup):
    first = await meet(db.dsn_for("worker"), close=False)
    await meet(db.dsn_for("worker"))  # takes the second place
    copy = backup()
    await meet(db.dsn_for("worker"))  # saw more, and is gone
    assert not (await meet(copy.dsn_for("api"))).clear
    await first.stop()


async def test_nobody_goes_ahead_while_the_others_of_the_host_are_asked(db, meet, backup, folder):
    """Else a worker would register beside that, and be ended by the fence that follows."""
    await meet(db.dsn_for("worker"))
    copy = backup()
    await meet(db.dsn_for("worker"))
    (known,) = folder.iterdir()
    keeper = Place(
        folder, UUID(known.name)
    )  # so that the next takes the second place, and asks for the first
    witness = Witness("worker", str(folder))
    dsn = copy.dsn_for("worker")
    with copy.connect(autocommit=False) as busy, copy.connect() as owner:
        busy.execute("lock table pgmail.worker in row share mode")  # as a claim on its way does
        async with (
            await psycopg.AsyncConnection.connect(dsn, autocommit=True) as first,
            await psycopg.AsyncConnection.connect(dsn, autocommit=True) as second,
        ):
            asking = asyncio.create_task(witness.greet(first))
            await eventually(lambda: one(owner, f"select count(*) from {LOCKS_HERE} where not granted") == 1)
            beside = asyncio.create_task(witness.greet(second))
            done, _ = await asyncio.wait({beside}, timeout=0.5)
            ahead = done, witness.clear
            busy.rollback()
            await asyncio.gather(asking, beside)
    assert ahead == (set(), False)
    assert witness.fence
    keeper.close()
    await witness.stop()


async def test_a_host_that_knows_nothing_trusts_and_a_spoilt_file_knows_nothing(db, meet, backup, folder):
    await meet(db.dsn_for("worker"))
    copy = backup()
    await meet(db.dsn_for("worker"))
    (file,) = folder.glob("*/*.json")
    file.write_text(file.read_text()[:30])
    assert (await meet(copy.dsn_for("worker"))).clear


async def test_after_the_decision_the_copy_is_the_truth_and_the_lost_history_is_not(db, meet, backup):
    await meet(db.dsn_for("worker"))
    copy = backup()
    await meet(db.dsn_for("worker"))
    witness = await meet(copy.dsn_for("worker"), close=False)
    async with await copy.aconnect("admin") as connection:
        assert await history.decide(connection, "hold", "the disk died") == 0
    with structlog.testing.capture_logs() as logs:
        assert (await meet(copy.dsn_for("worker"), witness)).clear
    assert [log["event"] for log in logs] == ["sending.goes_on"]
    assert (await meet(copy.dsn_for("worker"))).clear
    assert not (await meet(db.dsn_for("worker"))).clear  # nobody comes back to the old server unseen


async def test_another_database_has_a_memory_of_its_own(db, empty_db, meet, folder):
    witness = await meet(db.dsn_for("worker"), close=False)
    with db.connect() as connection:
        connection.execute("update pgmail.history set root = gen_random_uuid()")
    assert (await meet(db.dsn_for("worker"), witness)).clear
    assert len(list(folder.iterdir())) == 2


async def test_a_database_that_refuses_marks_stops_no_mail_and_is_told(db, meet):
    with structlog.testing.capture_logs() as logs:
        assert (await meet(db.dsn_for("producer"))).clear
    assert [log["event"] for log in logs] == ["history.unknown"]


@pytest.mark.long
async def test_thousands_in_doubt_are_decided_in_steps(db):
    with db.connect("producer") as connection:
        for _ in range(6):
            send_many(connection, [body(f"x{n}@example.org") for n in range(1000)])
    async with await db.aconnect("admin") as connection:
        # A step takes a second; joined the wrong way, on tables that were not analyzed, the first took over thirty.
        await connection.execute("set statement_timeout = '12s'")
        with pytest.raises(Refused, match="no restore"):
            await history.decide(connection, "hold", "why")
        await history.stop_all(connection, "restored")
        (row,) = await history.doubts(connection)
        assert (row.recipients, row.leased) == (6000, 0)
        assert await history.decide(connection, "hold", "the disk died") == 6000
        assert await history.fence(connection) is None
    with db.connect() as connection:
        assert one(connection, "select count(*) from pgmail.queue where due_at = 'infinity'") == 6000


async def test_marks_come_soon_after_work_and_the_last_one_at_the_end(db, folder):
    witness = Witness("worker", str(folder))
    pool = Pool(db.dsn_for("worker"), name="t", low=1, high=1, greet=witness.greet)
    witness.watch(pool)
    await pool.open()
    await witness.start()
    await eventually(lambda: witness.clear)
    (file,) = folder.glob("*/*.json")

    def marks():
        return json.loads(file.read_text())["marks"]

    before = marks()
    witness.acted()
    await eventually(lambda: marks() > before, 3)
    before = marks()
    assert await witness.drain(5)
    assert marks() > before
    await witness.stop()
    await pool.close()


def test_a_place_is_one_process_s_and_free_again_with_it(tmp_path):
    root = uuid4()
    first, second = Place(tmp_path, root), Place(tmp_path, root)
    assert first.witness != second.witness
    names = sorted(path.name for path in (tmp_path / str(root)).iterdir())
    assert names == ["0.lock", "1.lock"]
    first.close()
    first.close()
    third = Place(tmp_path, root)
    assert third._file == first._file
    second.close()
    third.close()


def test_the_folder_is_the_one_of_the_xdg_specification(monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", "/somewhere")
    assert default_folder() == Path("/somewhere/pgmail")
    monkeypatch.setenv("XDG_STATE_HOME", "not/absolute")  # is to be ignored
    assert default_folder() == Path.home() / ".local/state/pgmail"
