"""Chaos, short: one round of each kind with a shorter silence. The long run is `make chaos`."""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.chaos.rounds import SHORT, run

# A dead worker is found sooner, and a living one on a busy machine still beats often enough.
QUICK = {"PGMAIL_SILENCE_SECONDS": "2", "PGMAIL_BEAT_INTERVAL_MS": "250"}

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that PostgreSQL's account reaches."""
    made = Path(tempfile.mkdtemp(prefix="pgmail-chaos-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made, ignore_errors=True)


def tell(line: str) -> None:
    sys.stdout.write(line + "\n")  # shown with a failure


def test_nothing_is_lost_or_silently_twice_whatever_is_killed(folder):
    figures = run(folder, SHORT, seed=11, workers=2, settings=QUICK, say=tell)
    assert figures.rounds == len(SHORT)
    assert figures.kills == {"worker": 1, "postgres": 1}
    assert figures.fewest_leases > 0
    assert figures.lost == 0
    assert figures.sent > 0
    assert figures.held > 0
