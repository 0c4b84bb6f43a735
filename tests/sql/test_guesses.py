"""Who tries keys that are none, counted over all API processes."""

from datetime import UTC, datetime

import pytest

from pgmail.access import keynotes
from pgmail.access.guesses import EVERY_SECONDS, FREE, MOST, Guesses
from pgmail.access.keynotes import KeyNotes
from pgmail.clock import ManualClock
from pgmail.errors import DatabaseAway, Refused
from pgmail.store.database import Database
from tests.sql.kit import count, rows

THIEF = "192.0.2.1"


def share(connection, **counts):
    found = rows(
        connection,
        "select * from pgmail.share_guesses_v1(%s::text[], %s::integer[])",
        [list(counts), list(counts.values())],
    )
    return dict(found)


@pytest.fixture
async def processes(db):
    """Three API processes: their guesses and their notes."""
    database = Database(db.dsn_for("api"), name="guesses", low=0, high=2)
    await database.open()
    clock = ManualClock()
    made = []
    for _ in range(3):
        guesses = Guesses(clock)
        made.append((guesses, KeyNotes(database, guesses, clock)))
    yield made
    await database.close()


async def test_who_goes_from_process_to_process_is_slowed_as_by_one(processes):
    tries = 0
    for guesses, notes in processes:
        for _ in range(FREE // 2):
            guesses.failed(THIEF)
            tries += 1
        await notes.share()
    assert tries > FREE
    guesses, notes = processes[-1]
    assert guesses.wait(THIEF) > 0
    with pytest.raises(Refused):
        guesses.failed(THIEF)
    first = processes[0][0]
    assert first.wait(THIEF) == 0  # it hears of the others with the next try, within a second
    first.failed(THIEF)
    await processes[0][1].share()
    assert first.wait(THIEF) > 0


async def test_a_typo_or_two_is_nobody_elses_business(processes, owner):
    guesses, notes = processes[0]
    for _ in range(3):
        guesses.failed(THIEF)
    await notes.share()
    assert count(owner, "guess") == 0


async def test_without_a_database_each_process_counts_for_itself(processes, monkeypatch):
    async def away(*_: object) -> None:
        raise DatabaseAway("it is away")

    monkeypatch.setattr(keynotes.keys, "share_guesses", away)
    guesses, notes = processes[0]
    for _ in range(FREE):
        guesses.failed(THIEF)
    await notes.share()
    assert guesses.wait(THIEF) > 0


def test_tries_are_forgiven_with_time_bounded_and_forgotten(db, owner, db_clock):
    db_clock.freeze(datetime(2026, 11, 22, 12, tzinfo=UTC))
    api = db.connect("api")
    assert share(api, a=10, b=1) == {"a": 10, "b": 1}
    assert share(api, a=1000) == {"a": MOST}
    db_clock.advance(10 * EVERY_SECONDS)
    assert share(api, a=0) == {"a": MOST - 10}
    db_clock.advance(700)
    assert share(api, c=1) == {"c": 1}
    assert rows(owner, "select client from pgmail.guess") == [("c",)]
