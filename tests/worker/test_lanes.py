"""The lane book: which lanes are worth a look, from which head, and when."""

from collections import Counter
from datetime import timedelta
from uuid import UUID

import msgspec
import pytest

from pgmail.worker import lanes as module
from pgmail.worker.lanes import LOOK_BACK, LOOK_FAR, START, ZERO, Lane, LaneBook
from tests.worker.kit import Clock
from tests.worker.lanes_kit import NOON, Stops, go, learn, lease, row, served, take, untraced


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def book(clock: Clock) -> LaneBook:
    return LaneBook(clock)


def test_the_most_urgent_class_goes_first_and_the_lowest_keeps_moving(book):
    learn(book, [row(1, priority=1), row(2, priority=2), row(3, priority=3)])
    assert served(book, 160, "priority") == {1: 150, 3: 10}


def test_every_sixteenth_round_starts_with_the_lowest_class(book):
    learn(book, [row(1, priority=1), row(3, priority=3)])
    order = [take(book)[0].priority for _ in range(32)]
    assert [n for n, priority in enumerate(order, 1) if priority == 3] == [16, 32]


def test_blocked_lanes_are_not_chosen(book):
    learn(book, [row(1), row(2)])
    ((_, lanes, _),) = book.choose(lambda _: 10, Stops(1))
    assert [lane.id for lane in lanes] == [2]
    book.put_back(lanes)
    assert book.choose(lambda _: 0, go) == []
    assert book.choose(lambda _: 10, Stops(2)) == []
    assert book.next_look() is None


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
    ((_, lanes, rows),) = book.choose(lambda _: 1000, go)
    assert (len(lanes), rows) == (module.LANES_A_CLAIM, 1000)


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
    claims = book.claims([lane], 1, untraced)
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
        assert book.choose(lambda _: 2, go) == []
        clock.now += waits[-1]
    assert waits == sorted(waits)
    assert waits[0] < 0.1
    assert waits[-1] == module.LONGEST_PAUSE[2]
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
    book.time_is(NOON)
    (lane,) = take(book)
    due = [book.claims([lane], 1, untraced)[0].due for _ in range(2)]
    clock.now += module.LOOK_BACK_EVERY
    due += [book.claims([lane], 1, untraced)[0].due for _ in range(2)]
    later = NOON + timedelta(seconds=module.LOOK_BACK_EVERY)  # the database's time, as far as it is known
    assert due == [NOON, NOON, later - LOOK_BACK, NOON]


def test_now_and_then_it_looks_back_further(book, clock):
    learn(book, [row(1)])
    book.time_is(NOON)
    (lane,) = take(book)
    seconds = 0.0
    far = []
    while seconds <= 2 * module.LOOK_FAR_EVERY:
        clock.now, seconds = clock.now + 1, seconds + 1
        lane.due = NOON + timedelta(seconds=seconds)
        (asked,) = book.claims([lane], 1, untraced)
        if lane.due - asked.due == LOOK_FAR:
            far.append(seconds)
        else:
            assert lane.due - asked.due == LOOK_BACK
    assert far == [module.LOOK_FAR_EVERY, 2 * module.LOOK_FAR_EVERY]


def test_behind_a_backlog_there_is_nothing_to_look_back_for(book, clock):
    """A row that is committed late is late by seconds: its due time lies after a head of an hour ago."""
    learn(book, [row(1)])
    book.time_is(NOON + timedelta(hours=1))
    (lane,) = take(book)
    clock.now += module.LOOK_FAR_EVERY
    assert book.claims([lane], 1, untraced)[0].due == NOON


def test_a_sweep_starts_every_lane_over(book):
    learn(book, [row(1), row(2)])
    take(book)
    book.sweep()
    claims = book.claims([book.get(1, 1), book.get(1, 2)], 2, untraced)
    assert [(claim.due, claim.after) for claim in claims] == [(START, ZERO)] * 2


def dear(book: LaneBook, lane: Lane) -> None:
    """A claim that began far back, and took long."""
    lane.far = True
    book.claimed([lane], [], [], module.DEAR_SECONDS)


def test_where_it_is_dear_claims_look_no_further_back_than_some_seconds_nor_start_over(book, clock):
    learn(book, [row(1), row(2)])
    book.time_is(NOON)
    lane, other = book.get(1, 1), book.get(1, 2)
    lane.due = other.due = NOON
    dear(book, lane)
    assert book.dear() == {1: [lane]}
    clock.now += module.LOOK_FAR_EVERY
    lane.due = other.due = book.present()
    assert [lane.due - claim.due for claim in book.claims([lane, other], 2, untraced)] == [
        LOOK_BACK,
        LOOK_FAR,
    ]
    book.sweep()
    assert (lane.due, lane.swept) == (book.present(), False)
    assert other.due == START


def test_to_look_back_some_seconds_is_never_dear(book):
    learn(book, [row(1)])
    lane = book.get(1, 1)
    lane.due, lane.far = NOON, False
    book.claimed([lane], [], [], 9.0)
    assert book.dear() == {}


def test_what_was_found_behind_a_head_is_claimed_once_and_no_more_than_there_is(book):
    learn(book, [row(1)])
    book.time_is(NOON)
    (lane,) = take(book)
    back = NOON - timedelta(minutes=10)
    book.found_late(lane, back, 2)
    asked = [(each.limit, each.due < back) for each in give(book, 50, back)]
    assert asked == [(2, True)]
    assert [(each.limit, each.due < back) for each in give(book, 50, back, most=0)] == [(50, False)]
    book.found_late(lane, back, 2)
    give(book, 50, back, most=0)  # others have them by now
    assert lane.late is None
    book.found_late(lane, back, module.LATE_ROWS)  # that is a backlog
    asked = [(each.limit, each.due <= back) for _ in range(2) for each in give(book, 500, back)]
    assert asked == [(module.LATE_ROWS, True), (500, True)]


def give(book, slots, due, *, most=None, cut=None, parked=False):
    """A claim of all lanes that are ready, which limits cut to so many rows a lane, or park."""
    ((_, lanes, share),) = book.choose(lambda _: slots, go)
    claims = book.claims(lanes, share, untraced)
    if parked:
        for lane in lanes:
            book.park(lane, "limit")
        claims = []
    elif cut is not None:
        claims = [msgspec.structs.replace(claim, limit=min(claim.limit, cut)) for claim in claims]
    by_id = {lane.id: lane for lane in lanes}
    found = [lease(by_id[claim.lane], due, n + 1) for claim in claims for n in range(claim.limit)][:most]
    book.claimed(lanes, claims, found)
    return claims


def test_what_was_found_behind_a_head_is_claimed_by_and_by_where_a_claim_is_cut(book):
    """A limit that lets one go at a time does not leave the others to the next look, which may be long in coming."""
    learn(book, [row(1)])
    book.time_is(NOON)
    (lane,) = take(book)
    back = NOON - timedelta(minutes=10)
    book.found_late(lane, back, 3)
    assert give(book, 50, back, parked=True) == []
    book.free("limit")
    limits = [claim.limit for _ in range(3) for claim in give(book, 50, back, cut=1)]
    assert (limits, lane.late) == ([1, 1, 1], None)
    book.found_late(lane, back, 3)
    ((_, lanes, _),) = book.choose(lambda _: 50, go)
    book.claims(lanes, 50, untraced)
    book.put_back(lanes)  # the database was away
    assert give(book, 50, back)[0].limit == 3


def test_a_claim_that_takes_too_long_from_far_back_is_not_tried_again(book):
    """It would fail again, for ever: what is recent goes on, and the rest is looked for beside."""
    learn(book, [row(1), row(2)])
    book.time_is(NOON)
    lane, other = book.get(1, 1), book.get(1, 2)
    other.due = NOON - timedelta(seconds=5)
    book.claims([lane, other], 2, untraced)
    book.put_back([lane, other], module.GIVEN_UP_SECONDS / 2)  # the database was away
    assert lane.due == START
    book.put_back([lane, other], module.GIVEN_UP_SECONDS)
    assert (lane.due, lane.dear, lane.swept) == (NOON - LOOK_FAR, True, False)
    assert (other.due, other.dear) == (NOON - timedelta(seconds=5), False)


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
    assert book.choose(lambda _: 5, go) == []


def test_a_lane_that_was_empty_for_a_quiet_time_is_named_once_a_quiet_time(book, clock):
    learn(book, [row(1), row(2, tenant=2)])
    assert book.quiet() == {}
    clock.now += module.QUIET_SECONDS / 2
    take(book)
    clock.now += module.QUIET_SECONDS / 2
    (names,) = book.quiet().values()
    assert len(names) == 1
    assert book.quiet() == {}
