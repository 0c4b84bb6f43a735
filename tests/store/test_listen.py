"""Hearing of new mail."""

from collections.abc import AsyncIterator

import psycopg
import pytest

from pgmail.store import listen
from pgmail.store.listen import Listener
from tests.sql.kit import one
from tests.waiting import eventually
from tests.worker.cable import Cable, cable_to


class Ear:
    """A listener and what it heard."""

    def __init__(self, dsn: str) -> None:
        self.heard = 0
        self.listener = Listener(dsn, self._wake)

    def _wake(self) -> None:
        self.heard += 1


@pytest.fixture
async def cable(db) -> AsyncIterator[Cable]:
    async with cable_to(db.dsn_for("worker")) as made:
        yield made


@pytest.fixture
async def ear(db, cable) -> AsyncIterator[Ear]:
    made = Ear(cable.dsn(db.dsn_for("worker")))
    await made.listener.start()
    yield made
    await made.listener.stop()


async def test_a_notification_wakes_and_so_does_the_start(db, ear):
    await eventually(lambda: ear.listener.hearing)
    assert ear.heard == 1
    db.connect().execute("notify pgmail")
    await eventually(lambda: ear.heard == 2)


async def test_it_hears_itself_and_wakes_nobody_for_it(db, ear, monkeypatch):
    await eventually(lambda: ear.listener.hearing)
    db.connect().execute("select pg_notify('pgmail', 'test of another process')")
    db.connect().execute("notify pgmail")
    await eventually(lambda: ear.heard == 2)
    assert ear.heard == 2


async def test_two_listeners_do_not_take_the_others_test_for_their_own(db, ear):
    other = Ear(db.dsn_for("worker"))
    assert other.listener._token != ear.listener._token


async def test_it_tests_itself_again_and_again(db, monkeypatch):
    monkeypatch.setattr(listen, "RETEST_SECONDS", 0.05)
    tests = []
    with psycopg.connect(db.superuser_dsn, autocommit=True) as other:
        other.execute("listen pgmail")
        ear = Ear(db.dsn_for("worker"))
        await ear.listener.start()

        def two() -> bool:
            tests.extend(note.payload for note in other.notifies(timeout=0))
            return len(tests) >= 2

        await eventually(two)
        await ear.listener.stop()
    assert set(tests) == {ear.listener._token}


async def test_after_a_broken_connection_it_listens_again_and_looks_once(ear, cable, db):
    await eventually(lambda: ear.listener.hearing)
    cable.cut()
    await eventually(lambda: not ear.listener.hearing and cable.refused)
    heard = ear.heard
    cable.mend()
    await eventually(lambda: ear.listener.hearing)
    assert ear.heard == heard + 1  # what was committed meanwhile was not announced to it
    db.connect().execute("notify pgmail")
    await eventually(lambda: ear.heard == heard + 2)


async def test_behind_a_pooler_it_says_once_that_it_is_deaf_and_goes_on_trying(db, monkeypatch, capsys):
    """As a transaction-mode pooler does it: LISTEN is gone by the next statement."""
    monkeypatch.setattr(listen, "TEST_SECONDS", 0.02)
    monkeypatch.setattr(listen, "LONGEST_PAUSE", 0.02)
    nothing = listen._Q["listen"]._replace(text="select 1")
    monkeypatch.setattr(listen, "_Q", {**listen._Q, "listen": nothing})
    ear = Ear(db.dsn_for("worker"))
    await ear.listener.start()
    await eventually(lambda: ear.heard >= 3)
    assert not ear.listener.hearing
    await ear.listener.stop()
    assert capsys.readouterr().out.count("listener.deaf") == 1


async def test_it_drains_at_once_and_stops(db, ear):
    await eventually(lambda: ear.listener.hearing)
    assert await ear.listener.drain(0)
    await ear.listener.stop()
    assert one(db.connect(), "select 1") == 1
