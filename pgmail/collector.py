"""Python's cycle collector, set for processes that keep caches and make garbage without cycles.

As Python sets it, it looks through everything alive after each 700 new objects, and through all caches whenever they
have grown by a quarter: in a worker under load that was a quarter to a third of all its time, and found next to
nothing, since reference counts free what a mail leaves behind. What can go wrong: cycles (tracebacks, mostly) stay a
little longer; at 20,000 objects a look they come to a few megabytes.
"""

from __future__ import annotations

import gc

YOUNG = 20_000
"""New objects, less those freed since, before the youngest are looked through."""

MIDDLE, OLD = 50, 100
"""Looks at a generation before the next older one is looked through as well."""


def calm_collector() -> None:
    """Set it for this process, and leave modules, classes and functions that are loaded by now out of every look."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, MIDDLE, OLD)
