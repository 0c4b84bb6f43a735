"""The claimer's dealings with limits: mail that missed its moment, and a stock that is no more than asked for."""

import time
from collections import deque

import pytest

from pgmail.worker.claimer import Claimer
from pgmail.worker.content import Library
from pgmail.worker.job import Job
from pgmail.worker.limiter import Token
from pgmail.worker.outbox import Gate, Outbox
from pgmail.worker.relays import RAMP_START, Relays
from tests.worker.kit import Scripted, a_job, begin

KEY = ("site", "example.org")


class Tokens:
    """A limiter with so many tokens, and a gate."""

    def __init__(self, n: int) -> None:
        self.tokens = deque(Token(1.0, time.monotonic() + 60) for _ in range(n))
        self.gate = Gate(5)
        self.fetched: list[int] = []

    def keys(self, *_: object) -> tuple[tuple[str, str], ...]:
        return (KEY,)

    async def fetch(self, wanted: dict[tuple[tuple[str, str], ...], int]) -> None:
        self.fetched.append(wanted[KEY,])

    def long(self, _: object) -> bool:
        return False

    def reserve(self, _: object, most: int) -> list[Token]:
        return [self.tokens.popleft() for _ in range(min(most, len(self.tokens)))]

    def gates(self, _: object) -> tuple[Gate, ...]:
        self.gate.claimed += 1
        return (self.gate,)


class Desk:
    """A claimer of which only its hands are moved."""

    def __init__(self, tokens: int) -> None:
        self.outbox = Outbox(20, time.monotonic)
        self.limiter = Tokens(tokens)
        self.relays = Relays(None, {"default": Scripted()}, self.outbox)
        self.claimer = Claimer(
            None, None, library=Library(None, ""), relays=self.relays, rules=None, limiter=self.limiter,
            outbox=self.outbox, poll_ms=100, leading=lambda: False, listener=None,
        )  # fmt: skip

    def lapse(self, n: int) -> list[Job]:
        jobs = [a_job() for _ in range(n)]
        for job in jobs:
            self.claimer.lapsed(job)
        return jobs


async def test_mail_that_missed_its_moment_goes_on_in_its_order_as_far_as_there_are_new_tokens():
    desk = Desk(tokens=3)
    jobs = desk.lapse(5)
    assert await desk.claimer._tokens_for_lapsed()
    assert desk.claimer._lapsed == jobs[3:]
    assert all(job.until > time.monotonic() for job in jobs[:3])
    assert len(desk.outbox) == 3
    assert not await desk.claimer._tokens_for_lapsed()
    assert desk.claimer._lapsed == jobs[3:]
    assert not await Desk(tokens=3).claimer._tokens_for_lapsed()


async def test_mail_that_missed_its_moment_is_still_bounded_by_the_ramp_of_its_relay():
    desk = Desk(tokens=10)
    jobs = desk.lapse(4)
    await desk.claimer._tokens_for_lapsed()
    assert begin(desk.outbox) == jobs[:RAMP_START]
    assert desk.limiter.gate.claimed == 4


@pytest.mark.parametrize("priority", [1, 2, 3])
async def test_what_is_less_urgent_takes_no_room_from_what_is_more(priority, monkeypatch):
    desk = Desk(tokens=0)
    monkeypatch.setattr(desk.claimer, "_presence", type("Fresh", (), {"fresh": True}))
    assert desk.claimer._room(priority) == 40  # as many as there are slots, and as many again behind them
    for _ in range(30):
        desk.outbox.put(a_job(priority))
    assert desk.claimer._room(priority) == 0
    assert all(desk.claimer._room(p) == 40 for p in range(1, priority))
    assert all(desk.claimer._room(p) == 0 for p in range(priority, 4))


async def test_it_wakes_for_the_next_batch_as_soon_as_there_is_room_for_a_good_one(monkeypatch):
    desk = Desk(tokens=0)
    monkeypatch.setattr(desk.claimer, "_presence", type("Fresh", (), {"fresh": True}))
    desk.claimer._set_stock(40)
    for _ in range(40):
        desk.outbox.put(a_job())
    desk.outbox.slots = 0  # none is idle
    while not desk.claimer._wake.is_set():
        assert desk.claimer._room(2) == 0
        (job,) = begin(desk.outbox, 1)
        desk.outbox.done(job)
    assert desk.claimer._room(2) == 40 - len(desk.outbox) > 0


async def test_a_worker_that_may_count_as_dead_has_room_for_nothing(monkeypatch):
    desk = Desk(tokens=0)
    monkeypatch.setattr(desk.claimer, "_presence", type("Stale", (), {"fresh": False}))
    assert [desk.claimer._room(p) for p in (1, 2, 3)] == [0, 0, 0]
