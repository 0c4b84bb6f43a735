"""Relays as a worker finds them, and as the fleet is told."""

from itertools import pairwise

import pytest

from pgmail.shaping.verdict import decide
from pgmail.store import work
from pgmail.worker.relays import Relays
from tests.sql.kit import rows
from tests.worker.cable import cable_to
from tests.worker.kit import ACCEPTED, AWAY, LOCKED_OUT, READY, Scripted


class Clock:
    """A monotonic clock that stands still."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("pgmail.worker.relays.time", made)
    return made


def told(owner, name="default"):
    """State, reason and whether it has an end."""
    return rows(
        owner, "select state, reason, blocked_until is not null from pgmail.relay where name = %s", [name]
    )[0]


@pytest.fixture
def transport() -> Scripted:
    return Scripted()


@pytest.fixture
def relays(pool, transport, clock) -> Relays:
    return Relays(pool, {"default": transport})


async def test_a_relay_that_is_not_configured_here_is_blocked_here(relays):
    assert relays.blocked("other")
    assert relays.get("other") is None
    assert not relays.blocked("default")
    assert relays.wait_seconds() is None


async def test_a_relay_found_away_is_blocked_and_the_fleet_is_told_why(relays, owner, pool, clock):
    await relays.record("default", decide(AWAY))
    assert relays.blocked("default")
    assert 0 < relays.wait_seconds() < 2
    assert told(owner) == ("away", "relay_unreachable: connection refused", True)
    other = Relays(pool, {"default": Scripted()})
    await other.learn()
    assert other.blocked("default")


async def test_many_mails_that_find_it_away_tell_it_once(relays, owner):
    await relays.record("default", decide(AWAY))
    first = rows(owner, "select changed_at from pgmail.relay")
    for _ in range(5):
        await relays.record("default", decide(AWAY))
    assert rows(owner, "select changed_at from pgmail.relay") == first


async def test_it_is_probed_without_a_mail_once_its_wait_is_over(relays, transport, owner, clock):
    await relays.record("default", decide(AWAY))
    assert not await relays.probe()
    assert transport.probed == 0
    clock.now += 5
    assert relays.wait_seconds() == 0
    assert await relays.probe()
    assert (transport.probed, transport.begun) == (1, 0)
    assert not relays.blocked("default")
    assert told(owner) == ("up", None, False)


async def test_a_probe_that_fails_waits_longer(pool, owner, clock):
    transport = Scripted(probes=[AWAY] * 4)
    relays = Relays(pool, {"default": transport})
    await relays.record("default", decide(AWAY))
    waits = [relays.wait_seconds()]
    for _ in range(4):
        clock.now += relays.wait_seconds()
        assert not await relays.probe()
        waits.append(relays.wait_seconds())
    assert all(later > 1.2 * before for before, later in pairwise(waits))
    assert told(owner)[0] == "away"


async def test_what_another_worker_found_is_learnt_and_probed_here_too(relays, pool, transport, clock, owner):
    await work.relay_state(pool, "default", "away", "gone", 3.0)
    await relays.learn()
    assert relays.blocked("default")
    assert 2 < relays.wait_seconds() <= 3
    clock.now += 4
    assert await relays.probe()
    assert not relays.blocked("default")
    assert told(owner)[0] == "up"


async def test_a_login_that_is_refused_pauses_the_relay_and_is_tried_every_few_minutes_only(
    relays, transport, owner, clock
):
    await relays.record("default", decide(LOCKED_OUT))
    assert told(owner) == ("paused", "authentication_refused: 535 5.7.8 no such login", True)
    assert relays.blocked("default")
    clock.now += 60
    assert not await relays.probe()
    assert transport.probed == 0
    clock.now += 300
    assert await relays.probe()
    assert told(owner)[0] == "up"


async def test_a_login_that_is_still_refused_stays_paused(pool, owner, clock):
    relays = Relays(pool, {"default": Scripted(probes=[LOCKED_OUT])})
    await relays.record("default", decide(LOCKED_OUT))
    clock.now += 400
    assert not await relays.probe()
    assert told(owner)[0] == "paused"
    assert relays.blocked("default")
    assert relays.wait_seconds() > 0


async def test_an_operators_pause_has_no_end_and_no_probe_ends_it(relays, transport, owner, clock):
    owner.execute("select pgmail.pause_relay('default', 'moving house')")
    await relays.learn()
    assert relays.blocked("default")
    assert relays.wait_seconds() == float("inf")
    clock.now += 10_000
    assert not await relays.probe()
    assert transport.probed == 0


async def test_mail_on_its_way_does_not_end_an_operators_pause(relays, owner):
    owner.execute("select pgmail.pause_relay('default', 'moving house')")
    await relays.learn()
    await relays.record("default", decide(ACCEPTED))
    assert relays.blocked("default")
    assert told(owner) == ("paused", "moving house", False)


async def test_an_operators_pause_with_an_end_ends(relays, owner, clock):
    owner.execute("select pgmail.pause_relay('default', 'a break', now() + interval '1 hour')")
    await relays.learn()
    assert relays.blocked("default")
    await relays.record("default", decide(ACCEPTED))
    owner.execute("update pgmail.relay set blocked_until = now() - interval '1 second'")
    await relays.learn()
    assert await relays.probe()
    await relays.learn()
    assert not relays.blocked("default")
    assert told(owner)[0] == "up"


async def test_resuming_frees_the_relay_at_once(relays, owner, clock):
    owner.execute("select pgmail.pause_relay('default', 'moving house')")
    await relays.learn()
    owner.execute("select pgmail.resume_relay('default')")
    await relays.learn()
    assert not relays.blocked("default")


async def test_one_success_closes_the_circuit_and_tells_the_fleet(relays, owner):
    await relays.record("default", decide(AWAY))
    await relays.record("default", decide(ACCEPTED))
    assert told(owner)[0] == "up"
    await relays.learn()
    assert not relays.blocked("default")


async def test_with_the_database_away_it_is_told_later_and_the_pause_is_not_forgotten(db, owner, clock):
    from pgmail.errors import DatabaseAway
    from pgmail.store.database import Database as Pool

    async with cable_to(db.dsn_for("worker")) as cable:
        pool = Pool(cable.dsn(db.dsn_for("worker")), name="test", wait_seconds=0.3)
        await pool.open()
        relays = Relays(pool, {"default": Scripted(probes=[READY])})
        owner.execute("select pgmail.pause_relay('default', 'moving house')")
        await relays.learn()
        cable.cut()
        with pytest.raises(DatabaseAway):
            await relays.learn()
        assert relays.blocked("default")
        await relays.record("default", decide(AWAY))  # raises nothing
        cable.mend()
        await pool.close()
