"""Results are written, whatever happens between."""

import asyncio
from collections.abc import AsyncIterator, Collection
from uuid import UUID

import pytest

from pgmail.store import work
from pgmail.store.database import Database as Pool
from pgmail.store.work import Settlement
from pgmail.worker import settler as module
from pgmail.worker.settler import Settler
from tests.sql.kit import Hand, Lease, one, rows, send, send_many
from tests.waiting import eventually
from tests.worker.cable import Cable, cable_to
from tests.worker.kit import leased, settled


@pytest.fixture
def hand(db):
    return Hand(db.connect("worker"))


@pytest.fixture
async def cable(db) -> AsyncIterator[Cable]:
    async with cable_to(db.dsn_for("worker")) as made:
        yield made


class Office:
    """A settler and what it freed."""

    def __init__(self, pool: Pool, epoch: int, batch: int = 50, interval_ms: int = 5) -> None:
        self.freed = 0
        self.settler = Settler(pool, lambda: epoch, interval_ms=interval_ms, batch=batch, settled=self._free)

    def _free(self, ids: Collection[UUID]) -> None:
        self.freed += len(ids)

    def add(
        self, *leases: Lease, kind: str = "sent", claims: int | None = None, suppress: bool = False
    ) -> None:
        for lease in leases:
            self.settler.add(
                1,
                Settlement(
                    id=lease.id, message_id=lease.message_id, claims=claims or lease.claims, kind=kind,
                    lane=lease.lane, stream="transactional", priority=2, site="example.org", attempts=0,
                    suppress=suppress,
                ),
            )  # fmt: skip


@pytest.fixture
async def office(pool, hand) -> AsyncIterator[Office]:
    made = Office(pool, hand.epoch)
    await made.settler.start()
    yield made
    await made.settler.stop()


async def test_results_are_written_and_their_slots_freed(app, owner, hand, office):
    send(app), send(app)
    office.add(*hand.claim())
    await eventually(lambda: office.freed == 2)
    assert settled(owner) == {"sent": 2}
    assert office.settler.waiting == 0


async def test_more_than_a_batch_is_written_in_batches(app, owner, hand, pool):
    office = Office(pool, hand.epoch, batch=10, interval_ms=1000)
    body = {"from": "a@example.com", "subject": "s", "text": "t"}
    send_many(app, [{**body, "to": f"x{n}@example.org"} for n in range(35)])
    await office.settler.start()
    office.add(*hand.claim())  # a full batch does not wait for its interval
    await eventually(lambda: office.freed == 35)
    await office.settler.stop()
    assert settled(owner) == {"sent": 35}


async def test_a_row_that_another_transaction_holds_is_tried_again(db, app, owner, hand, office):
    send(app)
    (lease,) = hand.claim()
    with db.connect(autocommit=False) as holder:
        holder.execute("select from pgmail.queue for update")
        office.add(lease)
        await eventually(lambda: office.settler.waiting == 1)
        assert office.freed == 0
        holder.rollback()
    await eventually(lambda: office.freed == 1)
    assert settled(owner) == {"sent": 1}
    assert office.settler.fenced == 0


async def test_a_lease_that_was_lost_is_counted_recorded_and_freed(app, owner, hand, office):
    send(app)
    (lease,) = hand.claim()
    office.add(lease, claims=lease.claims + 1)
    await eventually(lambda: office.freed == 1)
    assert office.settler.fenced == 1
    assert settled(owner) == {"sending": 1}
    details = rows(owner, "select detail from pgmail.event where type = 'email.sent'")
    assert details == [("fenced out, its lease was lost",)]


async def test_with_the_database_away_results_are_kept_and_slots_stay_taken(db, app, owner, hand, cable):
    pool = Pool(cable.dsn(db.dsn_for("worker")), name="test", wait_seconds=0.5)
    await pool.open()
    office = Office(pool, hand.epoch)
    await office.settler.start()
    send(app), send(app)
    leases = hand.claim()
    cable.cut()
    office.add(*leases)
    await eventually(lambda: cable.refused)
    assert office.freed == 0
    assert leased(owner) == 2
    cable.mend()
    await eventually(lambda: office.freed == 2)
    assert settled(owner) == {"sent": 2}
    await office.settler.stop()
    await pool.close()


async def test_draining_writes_what_waits_before_it_ends(app, owner, hand, pool):
    office = Office(pool, hand.epoch, interval_ms=1000)
    await office.settler.start()
    send(app)
    office.add(*hand.claim())
    assert await office.settler.drain(5)
    assert office.freed == 1
    assert settled(owner) == {"sent": 1}
    await office.settler.stop()


async def test_stopping_at_once_still_writes_what_is_known(app, owner, hand, pool):
    """A crash elsewhere stops without draining; a result lost here would be a copy later."""
    office = Office(pool, hand.epoch, interval_ms=1000)
    await office.settler.start()
    send(app)
    office.add(*hand.claim())
    await office.settler.stop()
    assert settled(owner) == {"sent": 1}


async def test_a_result_that_comes_after_the_drain_is_written_by_the_stop(app, owner, hand, pool):
    office = Office(pool, hand.epoch)
    await office.settler.start()
    assert await office.settler.drain(1)
    send(app)
    office.add(*hand.claim())
    await office.settler.stop()
    assert settled(owner) == {"sent": 1}


async def test_stopping_with_the_database_away_ends_all_the_same(db, hand, app, cable, monkeypatch):
    monkeypatch.setattr(module, "LAST_SECONDS", 0.2)
    pool = Pool(cable.dsn(db.dsn_for("worker")), name="test", wait_seconds=0.2)
    await pool.open()
    office = Office(pool, hand.epoch)
    await office.settler.start()
    send(app)
    leases = hand.claim()
    cable.cut()
    office.add(*leases)
    await asyncio.wait_for(office.settler.stop(), 5)
    assert office.freed == 0
    await pool.close()


async def test_settling_again_what_was_settled_is_harmless(app, owner, hand, pool):
    """The answer of a settle may be lost: its results are then settled twice."""
    send(app)
    (lease,) = hand.claim()
    office = Office(pool, hand.epoch)
    office.add(lease)
    (result,) = office.settler._waiting[1]
    first = await work.settle(pool, 1, hand.epoch, [result])
    again = await work.settle(pool, 1, hand.epoch, [result])
    assert (first, again) == ({}, {lease.id: "fenced"})  # only what did not settle is answered
    assert one(owner, "select count(*) from pgmail.event where type = 'email.sent'") == 1


def suppressed(owner):
    return rows(owner, "select address, reason from pgmail.suppression order by 1")


async def test_an_address_in_an_open_transaction_stops_no_settling_and_is_suppressed_after_it(
    db, app, owner, hand, office
):
    send(app), send(app, "else@example.org")
    first, second = hand.claim()
    with db.connect(autocommit=False) as holder:
        holder.execute("select pgmail.suppress('ada@example.org')")
        office.add(first, kind="bounced", suppress=True)
        await eventually(lambda: office.freed == 1)
        office.add(second)
        await eventually(lambda: office.freed == 2)
        await eventually(lambda: one(owner, "select max(tries) from pgmail.bounced"))
        holder.rollback()
    await eventually(lambda: suppressed(owner) == [("ada@example.org", "bounced")])
    assert settled(owner) == {"bounced": 1, "sent": 1}


async def test_what_a_worker_that_died_had_noted_is_suppressed_by_the_next(app, owner, hand, pool):
    send(app)
    assert hand.settle(hand.claim(), "bounced", suppress=True) == ["settled"]
    assert suppressed(owner) == []
    office = Office(pool, hand.epoch)
    await office.settler.start()
    await eventually(lambda: suppressed(owner) == [("ada@example.org", "bounced")])
    await office.settler.stop()


async def test_a_drained_settler_leaves_no_note_of_its_own(app, owner, hand, pool):
    office = Office(pool, hand.epoch)
    await office.settler.start()
    send(app)
    office.add(*hand.claim(), kind="bounced", suppress=True)
    assert await office.settler.drain(10)
    assert suppressed(owner) == [("ada@example.org", "bounced")]
    await office.settler.stop()
