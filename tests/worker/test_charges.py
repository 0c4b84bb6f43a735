"""The loop's time is charged to whoever uses it: slow templates of one tenant do not slow the mail of others."""

from types import SimpleNamespace
from uuid import UUID, uuid4

import pytest

from pgmail.worker import charges as module
from pgmail.worker import content
from pgmail.worker.charges import APART, BRIEFLY, HERE, MOST_DEBT, RATE, SLOW, Charges
from pgmail.worker.content import QUICK, Library, Message
from pgmail.worker.heavy import LEAST_WAIT, MOST_WAIT, HeavyRoom
from tests.worker.kit import Clock
from tests.worker.test_sender import CONTENT, a_job


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def charges(clock) -> Charges:
    return Charges(clock)


def spend(charges: Charges, tenant: int = 1, template: str = "slow", renders: int = 10) -> None:
    for _ in range(renders):
        charges.charge(tenant, template, 0.05)


def test_a_slow_template_now_and_then_is_made_here(charges, clock):
    for _ in range(100):
        assert charges.way(1, "slow") == HERE
        charges.charge(1, "slow", 0.05)
        clock.now += 1.0


def test_a_flood_of_slow_templates_goes_apart_after_a_quarter_of_a_second(charges):
    made = 0
    while charges.way(1, "slow") == HERE:
        charges.charge(1, "slow", 0.05)
        made += 1
    assert 5 <= made <= 6
    assert charges.way(1, "slow") == APART


def test_quick_templates_of_the_same_tenant_and_all_of_others_stay_here(charges):
    charges.charge(1, "quick", 0.001)
    spend(charges)
    assert charges.way(1, "quick") == HERE
    assert charges.way(2, "slow") == HERE


def test_what_nobody_has_seen_is_tried_briefly_and_in_deep_debt_not_at_all(charges):
    spend(charges, renders=6)
    assert charges.way(1, "new") == BRIEFLY
    spend(charges, renders=20)
    assert charges.way(1, "new") == APART
    assert charges.way(1, "new", plain=True) == BRIEFLY
    assert charges.way(1, "slow", plain=True) == APART


def test_many_tenants_together_do_not_use_more_than_all_may(charges):
    for tenant in range(1, 100):
        spend(charges, tenant, renders=1)
    assert charges.way(50, "slow") == APART
    assert charges.way(1000, "slow") == HERE  # who has used nothing is not made to wait for that


def test_a_debt_is_over_after_seconds_however_much_was_used(charges, clock):
    spend(charges, renders=10_000)
    clock.now += -MOST_DEBT / RATE + 1
    assert charges.way(1, "slow") == HERE


def test_what_is_remembered_is_bounded(charges, monkeypatch):
    monkeypatch.setattr(module, "KNOWN_TEMPLATES", 50)
    monkeypatch.setattr(module, "KNOWN_TENANTS", 10)
    for n in range(1000):
        charges.charge(n, n, 0.05)
    assert len(charges._means) <= 50
    assert len(charges._tenants) <= 10


def test_a_mean_follows_a_template_that_became_quick(charges):
    spend(charges, renders=30)
    for _ in range(20):
        charges.charge(1, "slow", 0.0005)
    assert charges._means["slow"] < SLOW
    assert charges.way(1, "slow") == HERE


def a_library(charges: Charges) -> tuple[Library, Message, object]:
    job = a_job(content=CONTENT | {"text": "{% for i in range(9) %}{{ i }}{% endfor %}", "variables": {}})
    return Library(None, "", bounds=QUICK, charges=charges), job.message, job.person


def test_a_library_charges_what_renders_take_and_tells_what_is_dear(charges, monkeypatch):
    library, message, person = a_library(charges)
    ticks = iter(range(1000))
    monkeypatch.setattr(content, "time", SimpleNamespace(thread_time=lambda: next(ticks) * 0.05))
    for _ in range(8):
        assert library.wire_now(1, message, person, eightbit=True) is not None
    assert library.dear(1, message)
    assert not library.dear(2, message)
    literal = a_job(content=CONTENT).message
    assert not library.dear(1, literal)


async def test_no_tenant_has_more_than_half_of_the_room_for_heavy_mail():
    room = HeavyRoom(2, 10)
    entered = []
    while room.has_room(1):
        entered.append(room.place(1, uuid4()))
        room._here[1] += 1  # as `place` does when it is entered
    assert len(entered) == 6
    assert room.has_room(2)


async def test_a_place_is_given_back_whatever_happens_in_it():
    room = HeavyRoom(1)

    async def fail() -> None:
        async with room.place(1, uuid4()):
            assert not room.has_room(1)
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        await fail()
    assert room.has_room(1)


def test_who_puts_off_thousands_waits_long_and_a_neighbour_does_not():
    room = HeavyRoom(2, 10)
    waits = [room.put_off(1, UUID(int=n)) for n in range(5_000)]
    assert min(waits) >= LEAST_WAIT / 2
    assert MOST_WAIT / 2 <= max(waits) <= MOST_WAIT
    assert room.put_off(2, UUID(int=1)) <= LEAST_WAIT + 5
