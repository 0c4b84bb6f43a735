"""The outbox: who goes next, when, and how many at once."""

import asyncio
import random

import pytest

from pgmail.worker import outbox as module
from pgmail.worker.job import Job
from pgmail.worker.outbox import Outbox
from tests.waiting import eventually
from tests.worker.kit import Clock, a_job, begin

HIGH, NORMAL, LOW = 1, 2, 3


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def outbox(clock: Clock) -> Outbox:
    """Twenty slots, of which two are kept from each class for those above it."""
    return Outbox(20, clock)


def put(outbox: Outbox, *jobs: Job) -> list[Job]:
    for job in jobs:
        outbox.put(job)
    return list(jobs)


async def turns(n: int = 5) -> None:
    """Let all tasks go as far as they can."""
    for _ in range(n):
        await asyncio.sleep(0)


def test_the_most_urgent_class_goes_first_and_in_a_class_who_came_first(outbox):
    low, normal, high = ([a_job(p) for _ in range(2)] for p in (LOW, NORMAL, HIGH))
    put(outbox, *low, *normal, *high)
    assert begin(outbox) == [*high, *normal, *low]


def test_it_tells_when_slots_have_taken_all_but_a_few(outbox):
    told = []
    outbox.low, outbox.lowered = 2, lambda: told.append(len(outbox))
    put(outbox, *(a_job() for _ in range(5)))
    begin(outbox, 2)
    assert told == []
    begin(outbox, 1)
    assert told == [2]
    put(outbox, a_job())
    begin(outbox, 1)
    assert told == [2, 2]


async def test_it_counts_what_is_inside_whatever_takes_it_out(outbox):
    jobs = put(outbox, *(a_job(p) for p in (HIGH, NORMAL, LOW)), a_job(at=2000.0))
    assert len(outbox) == 4
    begin(outbox, 1)
    assert outbox.take(lambda job: job is jobs[2]) == [jobs[2]]
    assert len(outbox) == sum(outbox.held.values()) == 2
    assert len(outbox.take_all()) == 2
    assert len(outbox) == 0


def test_every_sixteenth_turn_begins_with_the_lowest_class():
    outbox = Outbox(1, Clock())
    put(outbox, *(a_job(HIGH) for _ in range(40)), *(a_job(LOW) for _ in range(10)))
    order = []
    for _ in range(48):
        (job,) = begin(outbox, 1)
        order.append(job.lane.priority)
        outbox.done(job)
    assert [n for n, priority in enumerate(order, 1) if priority == LOW][:2] == [16, 32]


def test_slots_are_reserved_for_the_classes_above_and_come_free_with_the_end_of_any(outbox):
    put(outbox, *(a_job(LOW) for _ in range(30)))
    low = begin(outbox)
    assert len(low) == 16
    put(outbox, *(a_job(NORMAL) for _ in range(10)))
    assert len(begin(outbox)) == 2
    put(outbox, *(a_job(HIGH) for _ in range(10)))
    assert len(begin(outbox)) == 2
    assert outbox.busy == 20
    outbox.done(low[0])
    assert [job.lane.priority for job in begin(outbox)] == [HIGH]


def test_so_few_slots_that_there_is_nothing_to_spare_are_for_all():
    outbox = Outbox(module.RESERVE_FROM - 1, Clock())
    put(outbox, *(a_job(LOW) for _ in range(9)))
    assert len(begin(outbox)) == module.RESERVE_FROM - 1


async def test_a_high_job_finds_a_slot_while_low_ones_fill_the_rest():
    outbox = Outbox(20, asyncio.get_running_loop().time)
    begun: list[Job] = []

    async def slot() -> None:
        while True:
            begun.append(await outbox.get())
            await asyncio.Event().wait()  # a host that never answers

    slots = [asyncio.create_task(slot()) for _ in range(20)]
    put(outbox, *(a_job(LOW) for _ in range(50)))
    await turns()
    assert len(begun) == 16
    (high,) = put(outbox, a_job(HIGH))
    await turns()
    assert begun[16:] == [high]
    for task in slots:
        task.cancel()
    await asyncio.gather(*slots, return_exceptions=True)


async def test_a_slot_that_was_turned_away_gets_the_job_once_another_ends(outbox):
    put(outbox, *(a_job(LOW) for _ in range(17)))
    busy = begin(outbox)
    waiting = asyncio.create_task(outbox.get())
    await turns()
    assert not waiting.done()
    outbox.done(busy[0])
    assert (await asyncio.wait_for(waiting, 5)).lane.priority == LOW


async def test_a_timed_job_comes_at_its_moment_and_not_before():
    now = asyncio.get_running_loop().time
    outbox, came = Outbox(4, now), []
    start = now()
    jobs = put(outbox, *(a_job(at=start + seconds) for seconds in (0.12, 0.04, 0.08)))

    async def slot() -> None:
        while len(came) < 3:
            job = await outbox.get()
            came.append((job, now() - job.at))
            outbox.done(job)

    await asyncio.wait_for(slot(), 10)
    assert [job for job, _ in came] == [jobs[1], jobs[2], jobs[0]]
    assert all(late >= -module.EARLY_SECONDS for _, late in came)


async def test_a_job_whose_moment_has_passed_is_ready_at_once(outbox, clock):
    (job,) = put(outbox, a_job(at=clock.now - 1))
    assert begin(outbox) == [job]


async def test_jobs_that_wait_for_their_moment_stand_in_nobodys_way(outbox, clock):
    put(outbox, *(a_job(HIGH, at=clock.now + 60) for _ in range(50)))
    (low,) = put(outbox, a_job(LOW))
    assert begin(outbox) == [low]
    assert len(outbox) == 50
    outbox.take_all()


def test_no_more_than_a_gates_limit_are_on_the_wire_and_others_pass_by(outbox):
    gate = outbox.gate("site")
    gate.limit = 2
    behind = put(outbox, *(a_job(HIGH, gate) for _ in range(5)))
    (free,) = put(outbox, a_job(LOW))
    assert begin(outbox) == [*behind[:2], free]
    assert (gate.busy, gate.claimed) == (2, 5)
    order = list(behind[:2])
    while order:
        outbox.done(order.pop(0))
        order += begin(outbox)
        assert gate.busy <= 2
    assert (gate.busy, gate.claimed) == (0, 0)


def test_who_waited_at_a_gate_goes_on_most_urgent_first_then_in_the_order_they_came(outbox):
    gate = outbox.gate("site")
    gate.limit = 0
    low, normal, high = ([a_job(p, gate) for _ in range(3)] for p in (LOW, NORMAL, HIGH))
    put(outbox, *low, *normal, *high)
    assert begin(outbox) == []
    gate.limit = 4
    outbox.opened(gate)
    assert begin(outbox) == [*high, normal[0]]
    gate.limit = None
    outbox.opened(gate)
    assert begin(outbox) == [*normal[1:], *low]


def test_places_that_come_free_one_by_one_before_a_slot_looks_are_given_out_once(outbox):
    gate = outbox.gate("site")
    gate.limit = 3
    jobs = put(outbox, *(a_job(NORMAL, gate) for _ in range(9)))
    busy = begin(outbox)
    for job in busy:
        outbox.done(job)
    assert begin(outbox) == jobs[3:6]
    assert len(gate.waiting[NORMAL]) == 3


def test_who_is_overtaken_at_a_gate_keeps_its_turn(outbox):
    gate = outbox.gate("site")
    gate.limit = 1
    first, second, third = put(outbox, *(a_job(NORMAL, gate) for _ in range(3)))
    assert begin(outbox) == [first]
    outbox.done(first)  # calls the second
    (urgent,) = put(outbox, a_job(HIGH, gate))
    assert begin(outbox) == [urgent]
    outbox.done(urgent)
    assert begin(outbox) == [second]
    outbox.done(second)
    assert begin(outbox) == [third]


def test_a_job_behind_two_gates_takes_no_place_at_the_one_while_it_waits_at_the_other(outbox):
    site, relay = outbox.gate("site"), outbox.gate("relay")
    site.limit = relay.limit = 1
    one, both, other = put(
        outbox, a_job(NORMAL, site, relay), a_job(NORMAL, site, relay), a_job(NORMAL, site)
    )
    assert begin(outbox) == [one]
    relay.begin(NORMAL)  # another site's mail has the relay's place
    outbox.done(one)
    assert begin(outbox) == [other]
    outbox.done(other)
    relay.begin(NORMAL, -1)
    outbox.opened(relay)
    assert begin(outbox) == [both]
    outbox.done(both)
    assert (site.busy, relay.busy, site.claimed, relay.claimed) == (0, 0, 0, 0)


async def test_taking_all_gives_what_no_slot_has_begun_wherever_it_waits_and_leaves_gates_clean(
    outbox, clock
):
    gate, ramp = outbox.gate("site"), outbox.gate("ramp")
    gate.limit = 1
    jobs = put(
        outbox,
        a_job(NORMAL, gate, ramp),
        a_job(NORMAL, gate, ramp),
        a_job(LOW, gate),
        a_job(HIGH, ramp, at=clock.now + 60),
        a_job(HIGH),
    )
    begun = begin(outbox, 3)
    put(outbox, *(late := [a_job(LOW), a_job(NORMAL, ramp)]))
    assert len(outbox) == 7 - len(begun)
    taken = outbox.take_all()
    assert {job.lease.id for job in taken} == {job.lease.id for job in [*jobs, *late] if job not in begun}
    assert len(taken) == 7 - len(begun)
    assert len(outbox) == 0
    for job in begun:
        outbox.done(job)
    for each in outbox.gates().values():
        assert (each.busy, each.claimed, each.called) == (0, 0, 0)
        assert not any(each.waiting.values())
    assert begin(outbox) == []


async def test_a_gate_that_calls_after_all_was_taken_has_its_whole_room(outbox):
    gate = outbox.gate("site")
    gate.limit = 1
    put(outbox, *(a_job(NORMAL, gate) for _ in range(3)))
    (first,) = begin(outbox)
    outbox.done(first)  # the next is called, and taken before it begins
    outbox.take_all()
    (new,) = put(outbox, a_job(NORMAL, gate))
    assert begin(outbox) == [new]


async def test_a_slot_cancelled_while_it_waits_loses_no_job(outbox):
    slots = [asyncio.create_task(outbox.get()) for _ in range(3)]
    await turns()
    (job,) = put(outbox, a_job())  # the first slot is told
    slots[0].cancel()
    await turns()
    assert slots[0].cancelled()
    done = [slot for slot in slots if slot.done() and not slot.cancelled()]
    assert [slot.result() for slot in done] == [job]
    for slot in slots:
        slot.cancel()
    await asyncio.gather(*slots, return_exceptions=True)
    put(outbox, a_job())
    assert len(begin(outbox)) == 1


async def test_under_any_order_of_slots_that_come_go_and_are_cancelled_every_job_is_sent_once(clock):
    dice = random.Random(7)
    outbox = Outbox(8, clock)
    gates = [outbox.gate(n) for n in range(3)]
    for n, gate in enumerate(gates):
        gate.limit = n + 1
    sent: list[Job] = []
    stopping = False

    async def slot() -> None:
        while not stopping:
            job = await outbox.get()
            try:
                assert all(gate.limit is None or gate.busy <= gate.limit for gate in gates)
                await turns(dice.randrange(4))
                sent.append(job)
            finally:
                outbox.done(job)

    jobs: list[Job] = []
    slots = [asyncio.create_task(slot()) for _ in range(8)]
    for _ in range(300):
        chosen = tuple(gate for gate in gates if dice.random() < 0.4)
        jobs += put(outbox, a_job(dice.choice((HIGH, NORMAL, LOW)), *chosen))
        await turns(dice.randrange(3))
        resting = [n for n, task in enumerate(slots) if _rests(outbox, task)]
        if resting and dice.random() < 0.3:
            n = dice.choice(resting)
            slots[n].cancel()
            slots[n] = asyncio.create_task(slot())
    await eventually(lambda: len(sent) == len(jobs))
    assert {job.lease.id for job in sent} == {job.lease.id for job in jobs}
    assert all((gate.busy, gate.claimed, gate.called) == (0, 0, 0) for gate in gates)
    assert (outbox.busy, len(outbox)) == (0, 0)
    stopping = True
    for task in slots:
        task.cancel()
    await asyncio.gather(*slots, return_exceptions=True)


def _rests(outbox: Outbox, task: asyncio.Task[None]) -> bool:
    """Whether a slot waits for a job: one that has begun a mail is never cancelled."""
    return getattr(task, "_fut_waiter", None) in outbox._idle


def test_a_gate_by_class_lets_the_urgent_pass_what_hangs_and_no_more_of_each_class_than_its_limit(outbox):
    ramp = outbox.gate("ramp", by_class=True)
    ramp.limit = 1
    low = put(outbox, *(a_job(LOW, ramp) for _ in range(3)))
    assert begin(outbox) == low[:1]
    normal = put(outbox, *(a_job(NORMAL, ramp) for _ in range(3)))
    assert begin(outbox) == normal[:1]
    high = put(outbox, *(a_job(HIGH, ramp) for _ in range(3)))
    assert begin(outbox) == high[:1]
    outbox.done(low[0])  # two that are more urgent are on the wire
    assert begin(outbox) == []
    outbox.done(high[0])
    assert begin(outbox) == high[1:2]


def test_withdrawing_takes_what_waits_behind_a_gate_wherever_it_is_and_leaves_the_rest(outbox, clock):
    site, relay = outbox.gate("site"), outbox.gate("relay")
    site.limit, relay.limit = 1, 1
    begun, *behind = put(outbox, a_job(NORMAL, site, relay), a_job(NORMAL, site), a_job(LOW, relay, site))
    assert begin(outbox) == [begun]
    behind += put(outbox, a_job(HIGH, site))
    others = put(outbox, a_job(NORMAL, relay), a_job(LOW))
    site.limit = 0
    assert set(outbox.withdraw(site)) == set(behind)
    assert (site.claimed, site.called, relay.claimed, relay.called) == (1, 0, 2, 0)
    assert len(outbox) == len(others)
    outbox.done(begun)
    assert set(begin(outbox)) == set(others)
