"""The lane book: fair shares between tenants, and what stands still at no cost."""

from collections import Counter
from datetime import timedelta

import pytest

from pgmail.worker import lanes as module
from pgmail.worker.lanes import LaneBook
from tests.worker.kit import Clock
from tests.worker.lanes_kit import (
    NOON,
    Stops,
    claim,
    go,
    learn,
    lease,
    row,
    rows_of_tenants,
    served,
    take,
    untraced,
)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def book(clock: Clock) -> LaneBook:
    return LaneBook(clock)


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


def test_tenants_of_one_round_share_it_evenly_and_none_claims_more_than_there_is_room_for(book):
    learn(book, [row(1, tenant=1), *(row(n, tenant=2) for n in range(2, 400))])
    for _ in range(50):
        assert sum(n for *_, n in claim(book, 100, 8)) <= 100
    found = rows_of_tenants(book, 50, 100)
    assert found[1] == found[2]


def test_the_rows_of_eight_tenants_with_hundreds_of_lanes_each_are_no_more_than_was_asked(book):
    learn(book, [row(tenant * 1000 + n, tenant=tenant) for tenant in range(1, 9) for n in range(300)])
    got = claim(book, 500, 8)
    assert sum(n for *_, n in got) <= 500
    assert [n for *_, n in got] == [62] * 8
    assert [len(lanes) for _, lanes, _ in got] == [62] * 8


def test_a_tenant_gets_a_statement_only_for_as_many_rows_as_it_is_worth(book):
    learn(book, [row(n, tenant=n) for n in range(1, 101)])
    assert [n for *_, n in claim(book, module.ROWS_A_TURN * 4, 8)] == [module.ROWS_A_TURN] * 4
    assert [n for *_, n in claim(book, 10, 8)] == [10]


@pytest.mark.parametrize("slots", [20, 100, 500])
def test_tenants_of_weights_one_and_three_get_rows_as_one_to_three(book, slots):
    book.weights = {2: 3.0}
    learn(book, [row(tenant * 100 + n, tenant=tenant) for tenant in (1, 2) for n in range(30)])
    found = rows_of_tenants(book, 200, slots)
    assert found[2] / found[1] == pytest.approx(3, rel=0.05)


def test_weights_hold_between_more_tenants_than_one_round_serves(book):
    book.weights = dict.fromkeys(range(1, 21, 2), 3.0)
    learn(book, [row(tenant * 100 + n, tenant=tenant) for tenant in range(1, 21) for n in range(3)])
    found = rows_of_tenants(book, 400, 100)
    heavy, light = ([found[t] for t in range(1, 21) if t % 2 == odd] for odd in (1, 0))
    assert sum(heavy) / sum(light) == pytest.approx(3, rel=0.05)
    for each in (heavy, light):
        assert max(each) / min(each) < 1.1


def test_what_a_tenant_had_of_one_class_is_not_held_against_others_in_another(book):
    """Of two tenants beside one with much urgent mail both get on, whoever comes first where they are even."""
    learn(
        book, [row(1, tenant=1, priority=1), *(row(100 * t + n, tenant=t) for t in (2, 3) for n in range(50))]
    )
    found: Counter[int] = Counter()
    for n in range(400):
        urgent = n % 2
        for tenant, lanes, share in book.choose(
            lambda p, urgent=urgent: {1: 20 * urgent, 2: 10 * (1 - urgent), 3: 0}[p], go, 8
        ):
            claims = book.claims(lanes, share, untraced)
            found[tenant] += sum(each.limit for each in claims)
            book.claimed(
                lanes,
                claims,
                [lease(lane) for lane, each in zip(lanes, claims, strict=True) for _ in range(each.limit)],
            )
    assert found[2] == found[3]


def test_parked_lanes_are_never_looked_at_until_what_stops_them_is_over(book):
    learn(book, [row(n) for n in range(100)])
    stops = Stops(*range(1, 100))
    for _ in range(50):
        for _, lanes, _ in book.choose(lambda _: 10, stops):
            book.put_back(lanes)
    assert {lane: n for lane, n in stops.asked.items() if lane} == dict.fromkeys(range(1, 100), 1)
    assert book.parked() == ["a limit"]
    stops.ids.clear()
    book.free("a limit")
    assert book.parked() == []
    assert {lane.id for _ in range(12) for lane in take(book)} == set(range(100))


def test_lanes_of_a_limit_are_freed_a_few_at_a_time_those_that_waited_longest_first(book):
    learn(book, [row(n) for n in range(10)])
    stops = Stops(*range(10))
    assert book.choose(lambda _: 10, stops) == []
    book.free("a limit", 3)
    assert [lane.id for lane in take(book, 20)] == [0, 1, 2]
    assert book.parked() == ["a limit"]
    book.free("a limit")
    assert book.parked() == []


def test_a_parked_lane_learns_its_rewind_and_stays_parked(book):
    learn(book, [row(1)])
    (lane,) = take(book)
    assert book.choose(lambda _: 10, Stops(1)) == []
    back = NOON - timedelta(hours=1)
    learn(book, [row(1, version=2, rewind_to=back)])
    book.wake_all()
    assert book.choose(lambda _: 10, go) == []
    assert lane.due < back
    book.free("a limit")
    assert take(book) == [lane]


def test_a_parked_lane_that_went_idle_is_not_freed_to_the_line(book):
    learn(book, [row(1)])
    book.choose(lambda _: 10, Stops(1))
    learn(book, [row(1, version=2, active=False)])
    book.free("a limit")
    assert book.choose(lambda _: 10, go) == []
    assert (book.parked(), len(book)) == ([], 0)


def test_a_chosen_lane_may_be_parked_after_all_and_is_out_of_the_way(book):
    learn(book, [row(1), row(2)])
    ((_, lanes, _),) = book.choose(lambda _: 10, go)
    book.park(lanes[0], "no token")
    book.claimed(lanes, book.claims(lanes[1:], 10, untraced), [lease(lanes[1])] * 10)
    assert book.parked() == ["no token"]
    assert [lane.id for lane in take(book)] == [2]


def test_among_fifty_thousand_lanes_a_choice_looks_only_at_those_that_are_ready(book, clock):
    learn(book, [row(n) for n in range(50_000)])
    stops = Stops(*range(50_000))
    while book.choose(lambda _: 500, stops):
        pass
    stops.asked.clear()
    learn(book, [row(60_000), row(60_001, tenant=2)])
    for _ in range(20):
        clock.now += 0.1
        assert take(book, 500)
        for _, lanes, _ in book.choose(lambda _: 500, stops):
            book.put_back(lanes)
    assert set(stops.asked) == {60_000, 60_001}


@pytest.mark.parametrize(("lanes", "seconds"), [(100, 0.25), (10_000, 0.5), (50_000, 1.0)])
def test_a_crowd_of_empty_lanes_is_looked_at_more_rarely_but_once_a_second(book, clock, lanes, seconds):
    learn(book, [row(n) for n in range(lanes)])
    lane = book.get(1, 0)
    for _ in range(10):
        lane.place = module._OUT
        book.claimed([lane], [], [])
    assert lane.next_look - clock.now == pytest.approx(seconds)


def test_lanes_of_a_claim_that_failed_are_chosen_again(book):
    learn(book, [row(1), row(2, tenant=2)])
    chosen = book.choose(lambda _: 100, go, 8)
    assert book.choose(lambda _: 100, go, 8) == []
    book.put_back([lane for _, lanes, _ in chosen for lane in lanes])
    assert {tenant for tenant, *_ in claim(book, 100, 8)} == {1, 2}
    book.put_back(
        [lane for _, lanes, _ in chosen for lane in lanes]
    )  # they are where they were: nothing happens
    assert sorted(lane.id for lane in take(book, 100) + take(book, 100)) == [1, 2]


def test_lanes_beyond_a_tenants_rows_keep_their_place_in_the_line(book):
    book.weights = {2: 9.0}
    learn(book, [row(tenant * 100 + n, tenant=tenant) for tenant in (1, 2) for n in range(60)])
    seen = [
        lane.id for _ in range(10) for tenant, lanes, _ in claim(book, 60, 2) for lane in lanes if tenant == 1
    ]
    assert seen == [100 + n % 60 for n in range(len(seen))]
