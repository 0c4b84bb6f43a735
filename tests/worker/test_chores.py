"""What runs beside the leader: while it leads, each by itself."""

from __future__ import annotations

import asyncio

from pgmail.maintain import chores
from pgmail.maintain.chores import Chores


class Counted:
    def __init__(self, name: str, *, fails: bool = False) -> None:
        self.name, self.steps, self._fails = name, 0, fails
        self.stepped = asyncio.Event()

    async def step(self) -> float:
        self.steps += 1
        self.stepped.set()
        if self._fails:
            raise RuntimeError("broken")
        return 0


async def test_chores_run_while_the_process_leads_and_stop_when_it_does_not() -> None:
    one = Counted("one")
    both = Chores([one])
    both.lead()
    await asyncio.wait_for(one.stepped.wait(), 10)
    both.lead()
    await both.rest()
    steps = one.steps
    for _ in range(5):
        await asyncio.sleep(0)
    assert one.steps == steps
    one.stepped.clear()
    both.lead()
    await asyncio.wait_for(one.stepped.wait(), 10)
    await both.rest()


async def test_a_chore_that_fails_comes_again_and_hurts_no_other(monkeypatch) -> None:
    monkeypatch.setattr(chores, "RETRY_SECONDS", 0)
    bad, good = Counted("bad", fails=True), Counted("good")
    both = Chores([bad, good])
    both.lead()
    async with asyncio.timeout(10):
        while bad.steps < 3 or good.steps < 3:  # noqa: ASYNC110
            await asyncio.sleep(0)
    await both.rest()


class Deaf(Counted):
    """Takes its first cancellation for something else."""

    async def step(self) -> float:
        self.stepped.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.steps += 1
            if self.steps > 1:
                raise
        return 0


async def test_a_chore_that_swallows_its_cancellation_is_cancelled_again(monkeypatch) -> None:
    monkeypatch.setattr(chores, "AGAIN_SECONDS", 0.01)
    deaf = Deaf("deaf")
    both = Chores([deaf])
    both.lead()
    await asyncio.wait_for(deaf.stepped.wait(), 10)
    await asyncio.wait_for(both.rest(), 10)
    assert deaf.steps == 2
