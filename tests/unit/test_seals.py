"""What the API knows of a tenant's seals: a second old at most, and asked once however many want to know."""

import asyncio
from types import SimpleNamespace

import pytest

from pgmail import seals
from pgmail.store.keys import Caller

CALLER, OTHER = Caller(1, "id", "tests"), Caller(2, "id", "others")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Asked(seals.Sealer):
    """Answers when the test says so."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(None, {"k": "v"}, clock)
        self.looks: list[int] = []
        self.go = asyncio.Event()
        self.fault: Exception | None = None

    async def _look(self, caller: Caller) -> SimpleNamespace:
        self.looks.append(caller.tenant_id)
        await self.go.wait()
        if self.fault is not None:
            raise self.fault
        return SimpleNamespace(number=len(self.looks))


async def turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_hundred_requests_at_the_end_of_a_second_share_one_look_up():
    clock = Clock()
    sealer = Asked(clock)
    sealer.go.set()
    await sealer.of(CALLER)
    clock.now += seals.TTL_SECONDS
    sealer.go.clear()
    asking = [asyncio.create_task(sealer.of(CALLER)) for _ in range(100)]
    asking.append(asyncio.create_task(sealer.of(OTHER)))
    await turn()
    assert sealer.looks == [1, 1, 2]
    sealer.go.set()
    answers = await asyncio.gather(*asking)
    assert len({id(answer) for answer in answers}) == 2


async def test_who_hangs_up_takes_the_answer_from_nobody_and_a_fault_reaches_all_once():
    sealer = Asked(Clock())
    asking = [asyncio.create_task(sealer.of(CALLER)) for _ in range(3)]
    await turn()
    asking[0].cancel()
    sealer.fault = RuntimeError("away")
    sealer.go.set()
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert [type(answer) for answer in answers] == [asyncio.CancelledError, RuntimeError, RuntimeError]
    sealer.fault = None
    assert await sealer.of(CALLER) is not None
    assert len(sealer.looks) == 2


async def test_what_was_asked_before_a_change_is_not_the_answer_after_it():
    sealer = Asked(Clock())
    before = asyncio.create_task(sealer.of(CALLER))
    await turn()
    assert sealer.forget(CALLER)
    after = asyncio.create_task(sealer.of(CALLER))
    await turn()
    assert len(sealer.looks) == 2
    sealer.go.set()
    await asyncio.gather(before, after)


@pytest.mark.parametrize("seconds", [0.0, 0.9])
async def test_within_a_second_nobody_asks_again(seconds):
    clock = Clock()
    sealer = Asked(clock)
    sealer.go.set()
    first = await sealer.of(CALLER)
    clock.now += seconds
    assert await sealer.of(CALLER) is first
