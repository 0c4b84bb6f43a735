"""Quantiles out of logarithmic buckets, and rows as CSV."""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime

import pytest

from pgmail.domain import csvtext
from pgmail.domain.spread import bounds, quantile


def bucket(ms: float) -> int:
    """As `pgmail.took_bucket` has it."""
    return 0 if ms <= 1 else min(math.ceil(4 * math.log2(ms)), 160)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_quantile_is_off_by_less_than_a_bucket_is_wide(seed: int) -> None:
    dice = random.Random(seed)
    values = sorted(dice.lognormvariate(5, 2) + 1.001 for _ in range(2000))
    counts: dict[int, int] = {}
    for value in values:
        counts[bucket(value)] = counts.get(bucket(value), 0) + 1
    for q in (0.05, 0.5, 0.95, 0.99):
        true = values[round(q * len(values)) - 1]
        assert quantile(counts, q) == pytest.approx(true, rel=0.2)


def test_each_value_lies_inside_the_bounds_of_its_bucket() -> None:
    for ms in (0.2, 1.0, 1.01, 7.0, 1000.0, 86_400_000.0):
        low, high = bounds(bucket(ms))
        assert low <= ms <= high


def test_nothing_has_no_quantile_and_one_value_has_itself_nearly() -> None:
    assert quantile({}, 0.5) is None
    assert quantile({0: 3}, 0.5) == 0.5
    assert quantile({40: 1}, 1.0) == 1024.0


def test_csv_quotes_what_it_must_and_no_cell_is_a_formula() -> None:
    at = datetime(2026, 1, 2, tzinfo=UTC)
    text = csvtext.write(("key", "n", "rate", "at"), [('=1+"1', 3, 0.5, at), ("a,b", None, -1.0, None)])
    assert text == 'key,n,rate,at\r\n"\'=1+""1",3,0.5,2026-01-02T00:00:00+00:00\r\n"a,b",,-1,\r\n'
