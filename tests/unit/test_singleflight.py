"""Who asks what is being asked already waits for that answer."""

import asyncio

import pytest

from pgmail.singleflight import SingleFlight
from tests.waiting import eventually


class Questions:
    """Asked for a key, waits to be answered."""

    def __init__(self) -> None:
        self.asked: list[asyncio.Future[str]] = []

    async def __call__(self) -> str:
        self.asked.append(asyncio.get_running_loop().create_future())
        return await self.asked[-1]

    async def came(self, n: int) -> None:
        await eventually(lambda: len(self.asked) >= n)


@pytest.fixture
def flight() -> SingleFlight[str, str]:
    return SingleFlight()


@pytest.fixture
def questions() -> Questions:
    return Questions()


async def test_one_question_answers_all_who_ask_meanwhile_and_the_next_is_asked_anew(flight, questions):
    both = asyncio.gather(flight.ask("key", questions), flight.ask("key", questions))
    await questions.came(1)
    assert len(flight) == 1
    questions.asked[0].set_result("first")
    assert await both == ["first", "first"]
    assert len(flight) == 0
    later = asyncio.create_task(flight.ask("key", questions))
    await questions.came(2)
    questions.asked[1].set_result("second")
    assert await later == "second"


async def test_who_hangs_up_leaves_the_answer_to_the_others(flight, questions):
    first, second = (asyncio.create_task(flight.ask("key", questions)) for _ in range(2))
    await questions.came(1)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    questions.asked[0].set_result("answer")
    assert await second == "answer"


async def test_an_error_is_told_to_all_and_is_not_kept(flight, questions):
    both = asyncio.gather(flight.ask("key", questions), flight.ask("key", questions), return_exceptions=True)
    await questions.came(1)
    questions.asked[0].set_exception(OSError("away"))
    assert [str(error) for error in await both] == ["away", "away"]
    flight.begin("key", questions)
    await questions.came(2)
    questions.asked[1].set_result("back")


async def test_after_forgetting_no_answer_is_older_than_that(flight, questions):
    early = asyncio.create_task(flight.ask("key", questions))
    await questions.came(1)
    flight.forget("key")
    late = asyncio.create_task(flight.ask("key", questions))
    await questions.came(2)
    questions.asked[0].set_result("before")
    assert await early == "before"
    shared = asyncio.create_task(flight.ask("key", questions))
    await asyncio.sleep(0)
    questions.asked[1].set_result("after")
    assert await asyncio.gather(late, shared) == ["after", "after"]
    assert len(questions.asked) == 2


async def test_an_error_that_nobody_waits_for_is_seen(flight, questions):
    said = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
    task = flight.begin("key", questions)
    await questions.came(1)
    questions.asked[0].set_exception(OSError("away"))
    await asyncio.wait([task])
    await asyncio.sleep(0)
    del task
    questions.asked.clear()
    assert said == []
