"""Services live one life; clocks in tests stand still until moved."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from pgmail.clock import ManualClock, SystemClock
from pgmail.service import Loop, run_all
from tests.waiting import eventually


class Part(Loop):
    """A service that writes down what happens to it."""

    def __init__(self, name, story, *, crash=None, hang=False):
        super().__init__(name)
        self.story, self.crash, self.hang = story, crash, hang

    async def run(self):
        if self.crash == "start":
            raise OSError(f"{self.name} cannot start")
        self.story.append(f"{self.name} started")
        self.ready()
        try:
            if self.crash == "early":
                return
            if self.crash == "later":
                raise OSError(f"{self.name} crashed")
            await self.draining.wait()
            if self.hang:
                await asyncio.Event().wait()
            self.story.append(f"{self.name} drained")
        except asyncio.CancelledError:
            self.story.append(f"{self.name} cancelled")
            raise
        if self.crash == "drain":
            raise OSError(f"{self.name} crashed")


def told():
    event = asyncio.Event()
    event.set()
    return event


async def test_who_is_told_to_stop_does_not_wait_for_a_part_that_cannot_start():
    class Waits(Part):
        async def run(self):
            self.story.append("waits")
            await asyncio.Event().wait()

    story, until = [], asyncio.Event()
    running = asyncio.create_task(
        run_all([Part("a", story), Waits("b", story), Part("c", story)], until=until, drain_seconds=5)
    )
    await eventually(lambda: "waits" in story)
    until.set()
    await asyncio.wait_for(running, 5)
    assert story == ["a started", "waits", "a drained"]


async def test_parts_start_in_order_and_drain_in_reverse():
    story = []
    await run_all([Part("a", story), Part("b", story)], until=told(), drain_seconds=5)
    assert story == ["a started", "b started", "b drained", "a drained"]


async def test_what_does_not_drain_in_time_is_cancelled():
    story = []
    await run_all([Part("a", story, hang=True)], until=told(), drain_seconds=0.01)
    assert story == ["a started", "a cancelled"]


async def test_the_first_crash_stops_all_and_is_raised():
    story = []
    with pytest.raises(OSError, match="b crashed"):
        await run_all(
            [Part("a", story), Part("b", story, crash="later")], until=asyncio.Event(), drain_seconds=5
        )
    assert story == ["a started", "b started", "a cancelled"]


async def test_a_part_that_cannot_start_stops_those_before_it():
    story = []
    parts = [Part("a", story), Part("b", story, crash="start"), Part("c", story)]
    with pytest.raises(OSError, match="b cannot start"):
        await run_all(parts, until=asyncio.Event())
    assert story == ["a started", "a cancelled"]


async def test_ending_without_being_asked_is_a_crash():
    with pytest.raises(RuntimeError, match="a ended without being asked to"):
        await run_all([Part("a", [], crash="early")], until=asyncio.Event())


async def test_a_crash_while_draining_is_raised():
    part = Part("a", [], crash="drain")
    await part.start()
    assert await part.drain(5)
    with pytest.raises(OSError, match="a crashed"):
        await part.ended()


async def test_cancelling_run_all_stops_its_parts():
    story = []
    part = Part("a", story)
    running = asyncio.create_task(run_all([part], until=asyncio.Event()))
    await part.started()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not part.running
    assert "a started" in story


async def test_a_fault_of_stopping_is_raised_and_keeps_nobody_running(monkeypatch):
    monkeypatch.setattr("pgmail.service.STOP_SECONDS", 0.01)
    free = asyncio.Event()

    class Stubborn(Loop):
        async def run(self):
            self.ready()
            while not free.is_set():
                try:
                    await free.wait()
                except asyncio.CancelledError:
                    continue

    story, stubborn = [], Stubborn("b")
    with pytest.raises(TimeoutError, match="b did not stop"):
        await run_all([Part("a", story), stubborn], until=told())
    assert story == ["a started", "a cancelled"] or story[-1] == "a drained"
    free.set()
    await stubborn.ended()


async def test_stopping_is_fine_at_any_time_and_any_number_of_times():
    part = Part("a", [])
    await part.stop()
    await part.ended()
    assert await part.drain(0)
    assert not part.running
    part = Part("a", [])
    await part.start()
    assert part.running
    await part.started()
    await part.stop()
    await part.stop()
    await part.ended()
    with pytest.raises(RuntimeError, match="started before"):
        await part.start()


async def test_waiting_for_a_start_ends_when_the_part_is_stopped_first():
    begun = asyncio.Event()

    class Slow(Loop):
        async def run(self):
            begun.set()
            await asyncio.Event().wait()

    part = Slow("slow")
    starting = asyncio.create_task(part.start())
    await begun.wait()
    await part.stop()
    with pytest.raises(RuntimeError, match="stopped before it was ready"):
        await starting


async def test_who_waits_for_a_part_before_its_start_learns_of_its_crash():
    part = Part("a", [], crash="start")
    waiting = asyncio.create_task(part.started())
    with pytest.raises(OSError, match="a cannot start"):
        await part.start()
    with pytest.raises(OSError, match="a cannot start"):
        await waiting


async def test_a_loop_without_run_says_so():
    with pytest.raises(NotImplementedError):
        await Loop("x").start()


# ---------------------------------------------------------------------------------------------- clock


async def test_a_manual_clock_wakes_sleepers_in_order_each_at_its_moment():
    clock, woken = ManualClock(), []

    async def sleeper(seconds):
        await clock.sleep(seconds)
        woken.append((seconds, clock.monotonic()))

    tasks = [asyncio.create_task(sleeper(seconds)) for seconds in (3, 1, 2)]
    await clock.wait_for_sleepers(3)
    assert clock.sleepers == 3
    await clock.advance(2.5)
    assert woken == [(1, 1), (2, 2)]
    await clock.advance(0.5)
    await asyncio.gather(*tasks)
    assert woken[-1] == (3, 3)
    assert clock.sleepers == 0


async def test_a_cancelled_sleeper_is_forgotten():
    clock = ManualClock()
    task = asyncio.create_task(clock.sleep(5))
    await clock.wait_for_sleepers()
    task.cancel()
    await asyncio.wait({task})
    assert clock.sleepers == 0
    await clock.advance(10)


async def test_a_manual_clock_moves_on_its_own_terms():
    start = datetime(2026, 11, 21, tzinfo=UTC)
    clock = ManualClock(start)
    await clock.sleep(0)
    assert (clock.now(), clock.monotonic()) == (start, 0)
    await clock.advance(60)
    clock.jump(-3600)
    assert (clock.now(), clock.monotonic()) == (start - timedelta(minutes=59), 60)
    with pytest.raises(ValueError, match="go back"):
        await clock.advance(-1)
    with pytest.raises(ValueError, match="aware"):
        ManualClock(start.replace(tzinfo=None))


async def test_the_system_clock_is_aware_and_goes_on():
    clock = SystemClock()
    before = clock.monotonic()
    await clock.sleep(-1)
    assert clock.monotonic() >= before
    assert clock.now().tzinfo is UTC
    assert abs(clock.now() - datetime.now(UTC)) < timedelta(minutes=1)
