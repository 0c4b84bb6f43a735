"""Single flight: who asks what is being asked already waits for that answer.

What can go wrong: the one who asked first hangs up. The question goes on for the others, and its error is seen even if
nobody is left to see it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Answer = TypeVar("Answer")


class SingleFlight(Generic[Key, Answer]):
    """Questions that are on their way, by key. It keeps no answers. For one event loop."""

    def __init__(self) -> None:
        self._asked: dict[Key, asyncio.Task[Answer]] = {}

    def __len__(self) -> int:
        """How many are on their way."""
        return len(self._asked)

    async def ask(self, key: Key, question: Callable[[], Coroutine[Any, Any, Answer]]) -> Answer:
        """Return the answer to a key's question, which is asked unless it is on its way. Raises what it raises."""
        # A client that hangs up must not take the answer away from the others who wait for it.
        return await asyncio.shield(self.begin(key, question))

    def begin(self, key: Key, question: Callable[[], Coroutine[Any, Any, Answer]]) -> asyncio.Task[Answer]:
        """Have it asked, and do not wait."""
        task = self._asked.get(key)
        if task is None:
            task = self._asked[key] = asyncio.create_task(question())
            task.add_done_callback(lambda done: self._answered(key, done))
        return task

    def forget(self, key: Key) -> None:
        """Who asks from now on gets an answer that is not older than this."""
        self._asked.pop(key, None)

    def _answered(self, key: Key, task: asyncio.Task[Answer]) -> None:
        if self._asked.get(key) is task:
            del self._asked[key]
        if not task.cancelled():
            task.exception()


__all__ = ["SingleFlight"]
