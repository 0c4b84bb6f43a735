"""The lane book: who goes next, from which head."""

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from pgmail.store.work import LaneRow, Lease
from pgmail.worker import lanes as module
from pgmail.worker.lanes import LOOK_BACK, START, ZERO, Lane, LaneBook

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def book(clock: Clock) -> LaneBook:
    return LaneBook(clock)


def row(
    lane: int = 1,
    tenant: int = 1,
    priority: int = 2,
    *,
    active: bool = True,
    version: int = 1,
    rewind_to: datetime | None = None,
) -> LaneRow:
    return LaneRow(tenant, lane, "transactional", priority, f"d{lane}.example", active, version, rewind_to)


def lease(lane: Lane, due: datetime = NOON, id: int = 1) -> Lease:
    return Lease(lane.tenant, UUID(int=id), UUID(int=9), lane.id, due, 1, 0, 0, None)


def take(book: LaneBook, slots: int = 10, *, most: int | None = None, due: datetime = NOON) -> list[Lane]:
    """One claim that gives every lane all it asked for, or `most` in all."""
    chosen = book.choose(slots, lambda _: False)
    if chosen is None:
        return []
    _, lanes = chosen
    claims = book.claims(lanes, slots, lambda _: False)
    found = [
        lease(lane, due, n + 1) for lane, claim in zip(lanes, claims, strict=True) for n in range(claim.limit)
    ]
    book.claimed(lanes, claims, found[:most])
    return lanes


def served(book: LaneBook, rounds: int, of: str, **more: int) -> Counter[int]:
    found: Counter[int] = Counter()
    for _ in range(rounds):
        for lane in take(book, **more):
            found[getattr(lane, of)] += 1
    return found


def learn(book: LaneBook, rows: Iterable[LaneRow], *, complete: bool = False) -> bool:
    return book.update(rows, complete=complete)


def test_the_most_urgent_class_goes_first_and_the_lowest_keeps_moving(book):
    learn(book, [row(1, priority=1), row(2, priority=2), row(3, priority=3)])
    assert served(book, 160, "priority") == {1: 150, 3: 10}


def test_every_sixteenth_round_starts_with_the_lowest_class(book):
    learn(book, [row(1, priority=1), row(3, priority=3)])
    order = [take(book)[0].priority for _ in range(32)]
    assert [n for n, priority in enumerate(order, 1) if priority == 3] == [16, 32]


def test_tenants_of_one_class_share_fairly_whatever_the_number_of_their_lanes(book):
    learn(book, [row(1, tenant=1), *(row(n, tenant=2) for n in range(2, 12))])
    rows_of: Counter[int] = Counter()
    for _ in range(100):
        for lane in take(book, 10):
            rows_of[lane.tenant] += 10 if lane.tenant == 1 else 1
    assert rows_of[1] == rows_of[2]


def test_a_tenant_that_was_away_does_not_come_back_with_a_credit_for_all_that_time(book, clock):
    learn(book, [row(1, tenant=1), row(2, tenant=2)])
    take(book), take(book)
    learn(book, [row(1, tenant=1, active=False, version=2)])
    served(book, 1000, "tenant")
    learn(book, [row(1, tenant=1, version=3)])
    assert served(book, 100, "tenant") == {1: 50, 2: 50}


def test_a_new_tenant_does_not_keep_the_others_waiting(book):
    learn(book, [row(1, tenant=1)])
    served(book, 1000, "tenant")
    learn(book, [row(2, tenant=2)])
    assert served(book, 100, "tenant") == {1: 50, 2: 50}


def test_blocked_lanes_are_not_chosen(book):
    learn(book, [row(1), row(2)])
    _, lanes = book.choose(10, lambda lane: lane.id == 1)
    assert [lane.id for lane in lanes] == [2]
    assert book.choose(10, lambda _: True) is None
    assert book.choose(0, lambda _: False) is None


def test_free_slots_are_shared_between_lanes_and_more_lanes_than_slots_take_turns(book, clock):
    learn(book, [row(n) for n in range(300)])
    seen: Counter[int] = Counter()
    for _ in range(30):
        clock.now += 0.001
        for lane in take(book, 10):
            seen[lane.id] += 1
    assert set(seen.values()) == {1}
    assert len(seen) == 300


def test_one_claim_names_a_bounded_number_of_lanes(book):
    learn(book, [row(n) for n in range(1000)])
    _, lanes = book.choose(1000, lambda _: False)
    assert len(lanes) == module.LANES_A_CLAIM


def test_a_claim_moves_the_head_and_an_empty_one_keeps_it(book):
    learn(book, [row(1)])
    (lane,) = take(book, 2)
    assert (lane.due, lane.after) == (NOON, UUID(int=2))
    take(book, 2, most=0)
    assert (lane.due, lane.after) == (NOON, UUID(int=2))
    assert book.claims([lane], 5, lambda _: True)[0] == module.Claim(1, NOON, UUID(int=2), 5, True)


def test_a_late_row_from_before_the_head_does_not_pull_it_back(book):
    learn(book, [row(1)])
    (lane,) = take(book, 2)
    claims = book.claims([lane], 1, lambda _: False)
    book.claimed([lane], claims, [lease(lane, NOON - timedelta(seconds=9))])
    assert lane.due == NOON


def test_an_empty_lane_pauses_longer_and_longer_and_a_lane_with_more_does_not(book, clock):
    learn(book, [row(1)])
    take(book, 2)
    assert book.next_look() == 0
    waits = []
    for _ in range(8):
        take(book, 2, most=0)
        waits.append(book.next_look())
        assert book.choose(2, lambda _: False) is None
        clock.now += waits[-1]
    assert waits == sorted(waits)
    assert waits[0] < 0.1
    assert waits[-1] == module.LONGEST_PAUSE
    book.wake_all()
    assert book.next_look() == 0


def test_what_became_due_again_rewinds_the_head_and_never_forward(book):
    learn(book, [row(1)])
    (lane,) = take(book)
    learn(book, [row(1, version=2, rewind_to=NOON + timedelta(seconds=5))])
    assert lane.due == NOON
    back = NOON - timedelta(hours=3)
    assert learn(book, [row(1, version=3, rewind_to=back)])
    assert (lane.due, lane.after) < (back, ZERO)
    assert book.next_look() == 0


def test_a_version_that_is_known_changes_nothing(book):
    learn(book, [row(1, version=5)])
    (lane,) = take(book)
    assert not learn(book, [row(1, version=5, rewind_to=START)])
    assert lane.due == NOON
    learn(book, [row(1, version=4, active=False)])
    assert len(book) == 1


def test_once_a_second_a_claim_looks_back_for_what_was_committed_late(book, clock):
    learn(book, [row(1)])
    (lane,) = take(book)
    due = [book.claims([lane], 1, lambda _: False)[0].due for _ in range(2)]
    clock.now += module.LOOK_BACK_EVERY
    due += [book.claims([lane], 1, lambda _: False)[0].due for _ in range(2)]
    assert due == [NOON, NOON, NOON - LOOK_BACK, NOON]


def test_a_sweep_starts_every_lane_over(book):
    learn(book, [row(1), row(2)])
    take(book)
    book.sweep()
    claims = book.claims([book.get(1, 1), book.get(1, 2)], 2, lambda _: False)
    assert [(claim.due, claim.after) for claim in claims] == [(START, ZERO)] * 2


def test_a_delta_adds_and_removes_and_a_complete_update_forgets_what_it_does_not_name(book):
    assert learn(book, [row(1), row(2, version=7)])
    assert book.version == 7
    learn(book, [row(2, version=8, active=False)])
    assert len(book) == 1
    assert learn(book, [row(3, version=9)], complete=True)
    assert len(book) == 1
    assert book.get(1, 3).id == 3
    with pytest.raises(KeyError):
        book.get(1, 1)


def test_without_lanes_there_is_nothing_to_wait_for(book):
    assert book.next_look() is None
    assert book.choose(5, lambda _: False) is None


def test_a_lane_that_was_empty_for_a_quiet_time_is_named_once_a_quiet_time(book, clock):
    learn(book, [row(1), row(2, tenant=2)])
    assert book.quiet() == {}
    clock.now += module.QUIET_SECONDS / 2
    take(book)
    clock.now += module.QUIET_SECONDS / 2
    (names,) = book.quiet().values()
    assert len(names) == 1
    assert book.quiet() == {}
