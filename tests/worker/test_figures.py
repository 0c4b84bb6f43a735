"""The chore behind all figures: what it does, and that it takes a small part of the time."""

from __future__ import annotations

import pytest

from pgmail.maintain import figures
from pgmail.maintain.figures import Figures
from pgmail.store.database import Database
from tests.sql import kit


@pytest.fixture
async def database(db):
    made = Database(db.dsn_for("maintain"), name="figures", high=1)
    await made.open()
    yield made
    await made.close()


async def test_a_round_rolls_up_events_and_gauges_the_queue(db, database):
    owner, app = db.connect(), db.connect("producer")
    owner.execute("select pgmail.suppress('gone@example.org')")
    kit.send_many(app, [kit.body(["gone@example.org", f"u{n}@example.org"]) for n in range(3)])
    chore = Figures(database)
    assert [await chore.step() for _ in range(3)] == [0.0] * 3  # one thing a step, so that it can be stopped
    assert 0 <= await chore.step() <= figures.ROLL_MOST_SECONDS
    assert (
        kit.one(
            owner, "select n from pgmail.rollup where dim = 'site' and grain = 'hour' and kind = 'suppressed'"
        )
        == 3
    )
    assert kit.rows(owner, "select site, queued, oldest_due_at is null from pgmail.gauge") == [
        ("example.org", 3, False)
    ]


async def test_what_takes_long_comes_rarely_and_what_is_behind_comes_soon(db, database, monkeypatch):
    app = db.connect("producer")
    db.connect().execute("select pgmail.suppress('gone@example.org')")
    kit.send_many(app, [kit.body("gone@example.org") for _ in range(3)])
    chore = Figures(database)
    monkeypatch.setattr(figures, "EVENTS", 1)
    assert (await chore._roll())(0.1) == pytest.approx(0.5)
    monkeypatch.setattr(figures, "EVENTS", 100)
    paced = await chore._roll()
    assert [paced(took) for took in (0.001, 0.1, 9.0)] == [2.0, pytest.approx(5.0), 10.0]
    assert (await chore._states())(2.5) == pytest.approx(500)
    assert (await chore._lanes())(0.2) == pytest.approx(20)


async def test_a_feed_without_its_index_is_waited_for(db, database):
    db.connect().execute("drop index pgmail.event_feed")
    chore = Figures(database)
    assert (await chore._roll())(0.0) == figures.WAIT_SECONDS
