"""Permits: what living workers may hold of a capped key never sums above the cap, and is shared fairly."""

import random
import threading

import psycopg
import pytest

from tests.sql import kit
from tests.sql.kit import Hand

pytestmark = pytest.mark.one_server

KEY = ("site", "big.example")


def cap(owner, connections, scope="site", name="big.example"):
    owner.execute("select pgmail.set_limit(%s, %s, null, 1, %s)", [scope, name, connections])


def share(hand, held, wanted, *others):
    """What this worker may hold of the key; `others` are (scope, name, held, wanted) beside it."""
    asked = [(*KEY, held, wanted), *others]
    found = kit.rows(
        hand.connection,
        "select * from pgmail.share_permits_v1(%s, %s, %s, %s, %s)",
        [hand.epoch, *(list(column) for column in zip(*asked, strict=True))],
    )
    answers = {(scope, name): allowed for scope, name, allowed in found}
    return answers if others else answers[KEY]


@pytest.fixture
def workers(db):
    connection = db.connect("worker")
    return [Hand(connection) for _ in range(4)]


class Holder:
    """A worker that does as it is told: opens at once, closes one connection at a time."""

    def __init__(self, hand):
        self.hand, self.held, self.allowed = hand, 0, 0

    def ask(self, wanted):
        self.allowed = share(self.hand, self.held, max(wanted, self.held))
        self.held = max(self.held, min(self.allowed, wanted))

    def close_one(self):
        if self.held > self.allowed:
            self.held -= 1


def test_one_worker_may_have_all_and_no_more(owner, hand):
    cap(owner, 10)
    assert share(hand, 0, 3) == 3
    assert share(hand, 3, 40) == 10


def test_what_has_no_cap_is_answered_so_and_leaves_no_row(owner, hand):
    assert share(hand, 5, 9) is None
    assert kit.count(owner, "permit") == 0


def test_shares_are_equal_and_what_one_leaves_is_lent(owner, workers):
    cap(owner, 10)
    for hand in workers:
        share(hand, 0, 0)
    a, b, c, d = workers
    assert share(a, 0, 20) == 10  # nobody else wants any
    assert share(b, 0, 20) == 0  # none is free yet
    assert share(c, 0, 1) == 0
    assert share(a, 10, 20) == 4  # 1 for c, and 9 for the two others
    assert share(c, 0, 1) == 0  # a holds all ten until it says otherwise
    assert share(a, 6, 20) == 4
    assert share(c, 0, 1) == 1
    assert share(b, 0, 20) == 3
    assert share(a, 4, 20) == 4
    assert share(b, 3, 20) == 5
    assert share(d, 0, 20) == 0


def test_a_remainder_goes_to_somebody(owner, workers):
    cap(owner, 10)
    for _ in range(2):
        for hand in workers:
            share(hand, 0, 99)
    assert sum(share(hand, 0, 99) for hand in workers) <= 10
    held = [Holder(hand) for hand in workers]
    for _ in range(4):
        for holder in held:
            holder.ask(99)
    assert sorted(holder.held for holder in held) == [2, 2, 3, 3]


def test_with_more_workers_than_connections_every_connection_is_used(db, owner):
    cap(owner, 2)
    connection = db.connect("worker")
    held = [Holder(Hand(connection)) for _ in range(5)]
    for _ in range(8):
        for holder in held:
            holder.ask(3)
            while holder.held > holder.allowed:
                holder.close_one()
    assert sum(holder.held for holder in held) == 2


def test_a_cap_that_is_lowered_is_reached_as_connections_are_given_back(owner, hand, other):
    cap(owner, 10)
    assert share(hand, 0, 10) == 10
    cap(owner, 4)
    assert share(hand, 10, 10) == 4
    assert share(other, 0, 10) == 0
    assert share(hand, 5, 10) == 2
    assert share(other, 0, 10) == 0
    assert share(hand, 2, 10) == 2
    assert share(other, 0, 10) == 2


def test_what_is_not_named_is_given_back(owner, hand, other):
    cap(owner, 3)
    cap(owner, 5, "relay", "default")
    assert share(hand, 0, 3, ("relay", "default", 0, 9)) == {KEY: 3, ("relay", "default"): 5}
    assert share(other, 0, 3, ("relay", "default", 0, 9)) == {KEY: 0, ("relay", "default"): 0}
    share(hand, 3, 3)
    assert share(other, 0, 3, ("relay", "default", 0, 9)) == {KEY: 0, ("relay", "default"): 5}


@pytest.mark.parametrize("end", ["rescue_v1", "worker_stop_v1"])
def test_permits_of_a_worker_end_with_it(owner, hand, other, end):
    cap(owner, 3)
    assert share(hand, 0, 3) == 3
    assert share(other, 0, 3) == 0
    owner.execute(f"select pgmail.{end}(%s)", [hand.epoch])
    assert kit.rows(owner, "select epoch from pgmail.permit") == [(other.epoch,)]
    assert share(other, 0, 3) == 3
    with pytest.raises(psycopg.Error) as refused:
        share(hand, 0, 3)
    assert refused.value.sqlstate == "PM410"


@pytest.mark.parametrize("seed", range(3))
def test_whatever_workers_want_give_back_and_die_they_never_hold_more_than_the_cap(db, owner, seed):
    chance, connection, n = random.Random(seed), db.connect("worker"), 7
    cap(owner, n)
    held = [Holder(Hand(connection)) for _ in range(4)]
    for _ in range(150):
        holder = chance.choice(held)
        match chance.randrange(12):
            case 0:
                holder.hand.rescue()
                held.remove(holder)
                held.append(Holder(Hand(connection)))
            case 1 | 2 | 3:
                holder.close_one()
            case 4:
                holder.held = chance.randint(0, holder.held)
            case _:
                holder.ask(chance.randint(0, 9))
        assert sum(holder.held for holder in held) <= n
    for _ in range(3):  # and when all want some, none stays unused
        for holder in held:
            holder.ask(9)
            while holder.held > holder.allowed:
                holder.close_one()
    assert sum(holder.held for holder in held) == n


def test_workers_that_ask_at_the_same_moment_neither_exceed_the_cap_nor_lock_each_other_out(db, owner):
    for name in ("a.example", "b.example", "big.example"):
        cap(owner, 5, name=name)
    hands = [Hand(db.connect("worker")) for _ in range(4)]
    gate, answers = threading.Barrier(4), {}

    def ask(hand, order):
        gate.wait(60)
        found = share(hand, 0, 4, *((("site", name, 0, 4)) for name in order))
        answers[hand.epoch] = found

    orders = [("a.example", "b.example"), ("b.example", "a.example")] * 2
    threads = [threading.Thread(target=ask, args=pair) for pair in zip(hands, orders, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 4
    for name in ("a.example", "b.example", "big.example"):
        assert sum(found["site", name] for found in answers.values()) <= 5


def test_with_fewer_connections_than_workers_each_has_its_turn_and_nobody_two(owner, workers, db_clock):
    cap(owner, 1)
    held = [Holder(hand) for hand in workers]
    had = set()
    for _ in range(60):
        for _ in range(3):  # who lost its turn gives back, and the next one has it
            for holder in held:
                holder.ask(5)
                assert sum(each.held for each in held) <= 1
                holder.close_one()
        had |= {holder.hand.epoch for holder in held if holder.held}
        db_clock.advance(60)
    assert had == {hand.epoch for hand in workers}


def test_who_has_a_connection_keeps_it_for_a_minute_at_least_and_for_good_where_there_are_enough(
    owner, workers, db_clock
):
    db_clock.freeze()
    cap(owner, 7)
    held = [Holder(hand) for hand in workers]
    seen = []
    for _ in range(20):
        for holder in held:
            holder.ask(5)
            holder.close_one()
        seen.append([holder.held for holder in held])
        db_clock.advance(60)
    assert seen[12:] == [seen[12]] * 8
    assert sum(seen[12]) == 7
