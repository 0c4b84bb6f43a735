"""Quantiles out of a histogram with logarithmic buckets, as roll-ups keep them: they can be added up over any span.

Bucket b holds what took from 2^((b-1)/4) up to 2^(b/4) milliseconds, bucket 0 what took up to one. The SQL that fills
them is `pgmail.took_bucket`. Inside a bucket values are taken to be spread evenly, so that a quantile is off by less
than the bucket is wide: 19 percent.
"""

from __future__ import annotations

from collections.abc import Mapping

BUCKETS_PER_OCTAVE = 4


def bounds(bucket: int) -> tuple[float, float]:
    """Return the milliseconds at which a bucket begins and ends."""
    if bucket <= 0:
        return 0.0, 1.0
    return 2 ** ((bucket - 1) / BUCKETS_PER_OCTAVE), 2 ** (bucket / BUCKETS_PER_OCTAVE)


def quantile(counts: Mapping[int, int], q: float) -> float | None:
    """Return the value in milliseconds below which the part `q` (0 to 1) lies; None of nothing."""
    total = sum(counts.values())
    if total <= 0:
        return None
    wanted, below = q * total, 0
    for bucket in sorted(counts):
        n = counts[bucket]
        if n > 0 and below + n >= wanted:
            low, high = bounds(bucket)
            return round(low + (high - low) * max(wanted - below, 0.0) / n, 1)
        below += n
    return round(bounds(max(counts))[1], 1)
