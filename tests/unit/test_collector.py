"""The cycle collector of long-lived processes."""

import subprocess
import sys

SHOWN = """
import gc, weakref
from pgmail.collector import YOUNG, calm_collector
calm_collector()
class Knot: pass
knot = Knot(); knot.self = knot; gone = weakref.ref(knot); del knot
assert gc.get_freeze_count() > 1000, "what was loaded is looked through again and again"
kept = [[] for _ in range(5000)]
assert gone() is not None, "it looked after five thousand objects"
kept += [[] for _ in range(YOUNG)]
assert gone() is None, "cycles are never freed"
"""


def test_cycles_are_still_freed_but_not_looked_for_at_every_turn():
    done = subprocess.run(
        [sys.executable, "-c", SHOWN], check=False, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
