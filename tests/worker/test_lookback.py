"""Looks beside the claiming: when the next one comes, and what it may not forget."""

import asyncio
import time
from datetime import timedelta

import pytest

from pgmail.errors import DatabaseAway
from pgmail.store.faults import Busy
from pgmail.worker import lookback as module
from pgmail.worker.lanes import GIVEN_UP_SECONDS, START, LaneBook
from pgmail.worker.lookback import LookBack
from tests.worker.lanes_kit import NOON, learn, row


class Scripted:
    """A database whose looks answer what a test wants; `clock` moves while they do."""

    def __init__(self, monkeypatch) -> None:
        self.now, self.takes, self.error, self.found = time.monotonic(), 0.0, None, {}
        self.asked = []
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(module.work, "late", self.late)

    def patient(self, _):
        return self

    async def late(self, _database, tenant, heads, _most):
        self.asked.append((tenant, [since for _, since, _, _ in heads]))
        await asyncio.sleep(0)
        self.now += self.takes
        if self.error is not None and self.error[0] in {tenant, None}:
            raise self.error[1]
        return self.found


@pytest.fixture
def database(monkeypatch):
    return Scripted(monkeypatch)


@pytest.fixture
def book(database):
    book = LaneBook(lambda: database.now)
    learn(book, [row(1), row(2, tenant=2)])
    book.time_is(NOON)
    for lane in (book.get(1, 1), book.get(2, 2)):
        lane.due, lane.dear = NOON, True
    return book


async def look(behind) -> bool:
    """One round; whether it looked."""
    behind.start()
    task = behind._task
    if task is not None:
        await asyncio.wait({task})
    return task is not None


async def test_a_database_that_was_waited_for_is_not_a_dear_look(database, book):
    """A server that fell silent in the midst of one: what waits is not left alone for fifty times as long."""
    behind = LookBack(database, book, lambda: None)
    database.takes, database.error = 30.0, (None, DatabaseAway("silent"))
    assert await look(behind)
    database.takes, database.error = 0.1, None
    database.now += 31
    assert await look(behind)


async def test_a_head_that_was_moved_past_what_waits_is_looked_behind_soon(database, book):
    behind = LookBack(database, book, lambda: None)
    database.takes = 20.0
    assert await look(behind)
    database.now += 50
    assert not await look(behind)
    lane = book.get(1, 1)
    lane.due, lane.far = START, True
    book.put_back([lane], GIVEN_UP_SECONDS)
    assert await look(behind)
    assert START in database.asked[-2][1]


async def test_a_head_that_is_moved_while_a_look_is_under_way_is_looked_behind_by_the_next(database, book):
    behind = LookBack(database, book, lambda: None)
    lane = book.get(1, 1)
    lane.swept = False
    behind.start()
    await asyncio.sleep(0)
    lane.due, lane.far = NOON - timedelta(hours=1), True
    book.put_back([lane], GIVEN_UP_SECONDS)
    await asyncio.wait({behind._task})
    assert (lane.dear, lane.swept) == (True, False)


async def test_a_tenant_whose_look_is_cut_off_keeps_no_other_from_its_own(database, book):
    behind = LookBack(database, book, lambda: None)
    book.sweep()
    database.error = (1, Busy("statement timeout"))
    assert await look(behind)
    assert [tenant for tenant, _ in database.asked] == [1, 2]
    assert (book.get(1, 1).swept, book.get(2, 2).swept) == (False, True)
