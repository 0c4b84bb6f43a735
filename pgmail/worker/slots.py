"""The slots of a process: so many mails on the wire at once, each a task that takes the next job.

Stopped while mail is on its way (the worker was declared dead, it crashed, or its drain took too long), slots call
back what was not sent yet, at once, and give it back. Mail whose end of data is out is not theirs to stop any more:
its reply is waited for, for a short while, so that it is recorded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from pgmail.service import Loop
from pgmail.worker.outbox import Outbox
from pgmail.worker.sender import Sender

TURN = 32  # mails that a slot sends on end, where nothing makes it wait, before others of the process have their turn
REPLY_SECONDS = 2.5  # for replies to what was sent, once all else is called back


class Slots(Loop):
    """Runs `n` slots over an outbox. Draining lets each finish the mail it has begun."""

    def __init__(
        self,
        sender: Sender,
        outbox: Outbox,
        n: int,
        recall: Callable[[], None] = lambda: None,
        hand_back: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`recall` ends what transports have and did not send yet; `hand_back` returns the leases of that."""
        super().__init__("slots")
        self._hand_back = hand_back
        self._sender, self._outbox, self._n, self._recall = sender, outbox, n, recall
        self._resting: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Run until drained: every slot ends after its present mail. A slot that crashes ends them all."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._slot()) for _ in range(self._n)]
            self.ready()
            await self.draining.wait()
            for task in tasks:
                if task in self._resting:
                    task.cancel()

    async def stop(self) -> None:
        """Call back what is not sent, hear of what is, and stop."""
        self.draining.set()
        if self._task is not None and not self._task.done():
            self._recall()
            await asyncio.wait({self._task}, timeout=REPLY_SECONDS)
            # The claimer has stopped before: what stays leased would be rescued as mail that may have been sent.
            if self._hand_back is not None:
                await self._hand_back()
        await super().stop()

    async def _slot(self) -> None:
        me = asyncio.current_task()
        assert me is not None  # noqa: S101 - it is a task by construction
        outbox, send, resting = self._outbox, self._sender.send, self._resting
        while not self.draining.is_set():
            for _ in range(TURN):
                job = outbox.next_job()
                if job is None:
                    resting.add(me)
                    job = await outbox.get()
                    resting.discard(me)
                try:
                    await send(job)
                finally:
                    outbox.done(job)
                    del job  # it may be large, and the next one may be long in coming
                if self.draining.is_set():
                    return
            await asyncio.sleep(0)
