"""How many mails arrived somewhere, and waiting for more: for the transports and servers that tests look into."""

from __future__ import annotations

import asyncio


class Arrivals:
    """A count that can be waited for, within one event loop."""

    def __init__(self) -> None:
        self.total = 0
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []

    def count(self) -> None:
        """One mail more."""
        self.total += 1
        for wanted, waiter in self._waiters:
            if self.total >= wanted and not waiter.done():
                waiter.set_result(None)

    async def wait_for(self, total: int, seconds: float) -> None:
        """Wait until `total` mails were counted since the start. Raises TimeoutError, with how many there were."""
        if self.total >= total:
            return
        entry = (total, asyncio.get_running_loop().create_future())
        self._waiters.append(entry)
        try:
            async with asyncio.timeout(seconds):
                await entry[1]
        except TimeoutError:
            raise TimeoutError(f"{self.total} of {total} mails arrived in {seconds:g} s") from None
        finally:
            self._waiters.remove(entry)
