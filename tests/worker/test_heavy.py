"""Mail whose template takes long is made apart, some at a time; others of its kind wait, and nobody else does."""

import asyncio
from datetime import UTC, datetime
from typing import Any

from pgmail.errors import TemplateFault
from pgmail.render.mime import Wire
from pgmail.worker.apart import Render
from pgmail.worker.content import QUICK, Library
from pgmail.worker.heavy import HeavyRoom
from pgmail.worker.job import Delay, Job
from pgmail.worker.sender import Sender
from tests.sql.kit import Hand, differences, events, one, rows, send
from tests.worker.kit import Scripted
from tests.worker.test_sender import CONTENT, a_job

HEAVY = CONTENT | {"text": "{% for i in range(9000) %}x{% endfor %}", "variables": {}}


class Ward:
    """Makes what it is asked for when the test says so."""

    def __init__(self) -> None:
        self.asked: list[Render] = []
        self.go = asyncio.Event()
        self.fault: TemplateFault | None = None

    async def render(self, order: Render) -> Wire:
        self.asked.append(order)
        await self.go.wait()
        if self.fault is not None:
            raise self.fault
        return Wire(b"made apart\r\n", False, False)


class Desk:
    """A sender with a ward; its findings are kept."""

    def __init__(self, at_once: int = 1) -> None:
        self.ward, self.transport = Ward(), Scripted()
        self.delayed: list[tuple[float, str]] = []
        self.settled: list[Any] = []
        self.sender = Sender(
            Library(None, "", bounds=QUICK), self, self, self._put_off, lambda: 7,
            present=lambda: datetime.now(UTC), lapsed=lambda _: None, ward=self.ward,
            heavy=HeavyRoom(at_once),
        )  # fmt: skip

    def get(self, name: str) -> Scripted:
        return self.transport

    def blocked(self, name: str) -> bool:
        return False

    eightbit = blocked

    def well(self, name: str, verdict: Any) -> bool:
        return True

    def add(self, tenant: int, settlement: Any) -> None:
        self.settled.append(settlement)

    async def _put_off(self, lease: Any, reason: Any) -> None:
        assert isinstance(reason, Delay)
        self.delayed.append((reason.seconds, reason.why))


def heavy() -> Job:
    return a_job(content=HEAVY)


async def test_a_heavy_mail_is_made_apart_and_sent():
    desk = Desk()
    desk.ward.go.set()
    await desk.sender.send(heavy())
    assert len(desk.ward.asked) == 1
    assert [found.kind for found in desk.settled] == ["sent"]


async def test_what_finds_no_place_is_put_off_with_a_reason_and_light_mail_goes_on():
    desk = Desk(at_once=2)
    under_way = [asyncio.create_task(desk.sender.send(heavy())) for _ in range(5)]
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(desk.ward.asked) == 2
    assert len(desk.delayed) == 3
    assert all(seconds >= 5 and "takes long" in reason for seconds, reason in desk.delayed)
    await desk.sender.send(a_job())
    assert [found.kind for found in desk.settled] == ["sent"]
    desk.ward.go.set()
    await asyncio.gather(*under_way)
    assert [found.kind for found in desk.settled] == ["sent"] * 3


async def test_a_mail_known_to_be_heavy_is_not_tried_between_others_again(monkeypatch):
    desk, job = Desk(), heavy()
    desk.ward.go.set()
    await desk.sender.send(job)
    monkeypatch.setattr(Library, "wire_now", None)
    await desk.sender.send(job)
    assert len(desk.ward.asked) == 2


async def test_what_is_too_heavy_apart_is_a_dead_letter_that_says_so():
    desk = Desk()
    desk.ward.fault = TemplateFault("too_slow", "text", "rendering takes longer than 0.25 s")
    desk.ward.go.set()
    await desk.sender.send(heavy())
    (found,) = desk.settled
    assert (found.kind, found.reason, found.error) == ("dead", "template", f"{desk.ward.fault}")


def test_a_delay_moves_the_due_time_spends_no_attempt_and_is_told_once(app, owner):
    mail, hand = send(app), Hand(owner)
    for seconds in (30, 3_000_000):
        owner.execute("update pgmail.queue set due_at = pgmail.now()")
        (lease,) = hand.claim(traced=False)
        put_off = "select pgmail.postpone_v1(1, %s, array[%s]::uuid[], array[%s], %s, 'no room')"
        assert rows(owner, put_off, [hand.epoch, lease.id, lease.claims, seconds]) == [(lease.id,)]
        assert not rows(owner, put_off, [hand.epoch, lease.id, lease.claims, seconds])  # the fence
        ahead = one(owner, "select extract(epoch from due_at - pgmail.now())::int from pgmail.queue")
        assert min(seconds, 3600) - 5 <= ahead <= min(seconds, 3600)
    assert rows(owner, "select attempts, wait, leased_by from pgmail.queue") == [(0, "delayed", None)]
    assert events(app, mail) == ["queued", "delayed"]
    assert "no room" in one(app, "select pgmail.why(%s)", [mail])
    assert differences(owner) == [0]
