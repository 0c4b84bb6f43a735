"""The slots: mail after mail, and nobody else in the process kept waiting for it."""

import asyncio
import time

from pgmail.worker.outbox import Outbox
from pgmail.worker.slots import TURN, Slots
from tests.worker.kit import a_job


class Quick:
    """A sender that never waits for anything."""

    def __init__(self) -> None:
        self.sent = 0

    async def send(self, _job: object) -> None:
        self.sent += 1


async def test_mail_that_makes_no_slot_wait_leaves_others_of_the_process_their_turn():
    outbox, sender = Outbox(1, time.monotonic), Quick()
    slots = Slots(sender, outbox, 1)
    await slots.start()
    for _ in range(4 * TURN):
        outbox.put(a_job())
    seen = []
    while sender.sent < 4 * TURN:
        await asyncio.sleep(0)
        seen.append(sender.sent)
    assert max(b - a for a, b in zip([0, *seen], seen, strict=False)) <= TURN
    assert await slots.drain(1.0)
    await slots.stop()


async def test_a_slot_that_drains_ends_after_its_present_mail():
    outbox = Outbox(1, time.monotonic)

    class Drains(Quick):
        async def send(self, job: object) -> None:
            await super().send(job)
            slots.draining.set()

    sender = Drains()
    slots = Slots(sender, outbox, 1)
    for _ in range(2 * TURN):
        outbox.put(a_job())
    await slots.start()
    assert await slots.drain(1.0)
    assert sender.sent == 1
    assert len(outbox) == 2 * TURN - 1
    await slots.stop()
