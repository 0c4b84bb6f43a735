"""Who is there in tests of workers: an application, the owner who looks, and workers in this process."""

from collections.abc import AsyncIterator

import pytest

from pgmail.store.database import Database as Pool
from pgmail.worker import relays
from tests.worker.kit import Crew


@pytest.fixture
async def pool(db) -> AsyncIterator[Pool]:
    """The database as a worker sees it."""
    made = Pool(db.dsn_for("worker"), name="test", low=1, high=3, wait_seconds=3)
    await made.open()
    yield made
    await made.close()


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Relays are not ramped up to: as many mails are on the wire from the start as there are slots."""
    monkeypatch.setattr(relays, "RAMP_START", relays.RAMP_DONE)


@pytest.fixture
async def crew(db, sink) -> AsyncIterator[Crew]:
    made = Crew(db, sink)
    yield made
    await made.dismiss()
