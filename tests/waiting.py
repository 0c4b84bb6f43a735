"""Waiting for what is to come, without a fixed sleep: until a condition holds, or time is over."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any

POLL_SECONDS = 0.01


async def eventually(
    condition: Callable[[], Any | Awaitable[Any]], seconds: float = 15.0, *, what: str = ""
) -> Any:
    """Ask until the answer is true, and return it. AssertionError with the last answer when time is over.

    `condition` may be a coroutine function. The first question is asked at once.
    """
    until = time.monotonic() + seconds
    while True:
        answer = condition()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer:
            return answer
        if time.monotonic() > until:
            raise AssertionError(f"{what or 'it'} did not come true in {seconds:g} s; last: {answer!r}")
        await asyncio.sleep(POLL_SECONDS)


def eventually_now(condition: Callable[[], Any], seconds: float = 15.0, *, what: str = "") -> Any:
    """The same where there is no event loop: tests of real processes."""
    until = time.monotonic() + seconds
    while not (answer := condition()):
        if time.monotonic() > until:
            raise AssertionError(f"{what or 'it'} did not come true in {seconds:g} s; last: {answer!r}")
        time.sleep(POLL_SECONDS)
    return answer
