"""Tokens under several rates at once: one moment in all buckets, none closer to another than a bucket's gap."""

import random
from collections import defaultdict
from itertools import pairwise

import pytest

from tests.sql import kit
from tests.sql.kit import Hand

pytestmark = pytest.mark.one_server

FAST, SLOW, TENANT = ("site", "big.example"), ("relay", "account"), ("tenant", "default")
GAPS = {FAST: 0.01015, SLOW: 0.0725, TENANT: 1.015}


@pytest.fixture
def limited(owner, db_clock):
    db_clock.freeze()
    for (scope, name), rate in zip(GAPS, (100, 14, 1), strict=True):
        owner.execute("select pgmail.set_limit(%s, %s, %s, 1, null, 0)", [scope, name, rate])
    return db_clock


@pytest.fixture
def hand(db):
    """As the owner, to look at buckets as well."""
    return Hand(db.connect())


def take(hand, *wants):
    """Wants are (number, keys): the moments of each as seconds from now, those passed over by key, and the waits."""
    each = [(n, *key, wanted) for n, (wanted, keys) in enumerate(wants) for key in keys]
    found = kit.rows(
        hand.connection,
        "select * from pgmail.take_tokens_v2(%s, %s, %s, %s, %s)",
        [hand.epoch, *(list(column) for column in zip(*each, strict=True))],
    )
    moments = [row[3] for row in found if row[0] is not None]
    passed = {row[1:3]: row[3] for row in found if row[0] is None}
    return moments, passed, [row[5] for row in found if row[0] is not None]


def gaps(moments):
    return [later - before for before, later in pairwise(sorted(moments))]


def test_mail_under_two_rates_has_one_moment_a_gap_of_the_slower_apart(limited, hand):
    (moments,), _, _ = take(hand, (100, (FAST, SLOW)))
    assert len(moments) == 1 or min(gaps(moments)) == pytest.approx(GAPS[SLOW])
    assert kit.rows(hand.connection, "select count(*), count(distinct last_at) from pgmail.bucket") == [
        (2, 1)
    ]


def test_what_a_slower_rate_passes_over_is_the_askers_and_keeps_its_distance(limited, hand):
    first, passed, _ = take(hand, (1, (SLOW,)), (1, (FAST, SLOW)))
    assert first[1] == []  # the slow one's next is further than may be passed over
    for _ in range(50):  # a call starts at its own moment, milliseconds later on a busy machine
        limited.advance(GAPS[SLOW] - 0.035)
        (joint,), passed, _ = take(hand, (1, (FAST, SLOW)))
        if passed:
            break
    assert min(gaps(passed[FAST] + joint)) >= GAPS[FAST] - 1e-6
    (more,), _, _ = take(hand, (1, (FAST,)))
    assert more[0] - joint[0] >= GAPS[FAST] - 0.005  # clock_timestamp() moves on between two statements


def test_a_slow_rate_does_not_use_up_the_moments_of_a_fast_one_it_waits(limited, hand):
    assert len(take(hand, (1, (FAST, TENANT)))[0][0]) == 1
    (moments,), _, (wait,) = take(hand, (5, (FAST, TENANT)))
    assert moments == []
    assert wait == pytest.approx(GAPS[TENANT] - 0.04, abs=0.05)
    (moments,), _, _ = take(hand, (1000, (FAST,)))
    assert len(moments) >= 45
    limited.advance(wait)
    assert len(take(hand, (5, (FAST, TENANT)))[0][0]) == 1


def test_sets_of_one_call_share_the_buckets(limited, hand):
    found, _, _ = take(hand, (2, (FAST, SLOW)), (2, (FAST,)), (2, (SLOW,)), (3, (("site", "free.example"),)))
    assert found[3] == [0, 0, 0]
    assert min(gaps(found[0] + found[1])) >= GAPS[FAST] - 1e-6
    assert min(gaps(found[0] + found[2])) >= GAPS[SLOW] - 1e-6


@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_asked_for_together_no_two_tokens_of_a_bucket_are_closer_than_its_gap(db, limited, seed):
    chance, connection = random.Random(seed), db.connect()
    hands = [Hand(connection) for _ in range(3)]
    sets = [(FAST,), (SLOW,), (FAST, SLOW), (FAST, TENANT), (SLOW, TENANT), (FAST, SLOW, TENANT)]
    began, given = limited.now(), defaultdict(list)
    for _ in range(60):
        wants = [(chance.randint(1, 9), keys) for keys in chance.sample(sets, 2)]
        # In one transaction, to know by the buckets when "now" was for this call.
        with connection.transaction():
            moments, passed, _ = take(chance.choice(hands), *wants)
            buckets = kit.rows(
                connection, "select scope, name, last_at from pgmail.bucket where isfinite(last_at)"
            )
        last = {(scope, name): at for scope, name, at in buckets}
        mine = defaultdict(list)
        for (_, keys), found in zip(wants, moments, strict=True):
            for key in keys:
                mine[key] += found
        for key, found in passed.items():
            mine[key] += found
        for key, found in mine.items():
            if found:
                zero = (last[key] - began).total_seconds() - max(found)
                given[key] += [zero + moment for moment in found]
        limited.advance(chance.choice((0.0, 0.01, 0.1, 0.4)))
    for key, moments in given.items():
        assert min(gaps(moments)) >= GAPS[key] - 1e-5
    assert len(given) == 3
