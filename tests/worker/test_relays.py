"""Relays as a worker finds them, and as the fleet is told."""

import asyncio
from collections import Counter
from itertools import pairwise

import pytest

from pgmail.domain.reply import Phase, Reply, Result
from pgmail.errors import DatabaseAway
from pgmail.shaping.verdict import decide
from pgmail.store import work
from pgmail.store.database import Database as Pool
from pgmail.store.work import StreamRow
from pgmail.worker import relays as module
from pgmail.worker.job import Job
from pgmail.worker.outbox import Outbox
from pgmail.worker.relays import Relays
from tests.sql.kit import rows
from tests.waiting import eventually
from tests.worker.cable import cable_to
from tests.worker.kit import ACCEPTED, AWAY, LOCKED_OUT, READY, Clock, Scripted, a_job, begin


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
def outbox(clock) -> Outbox:
    return Outbox(8, clock.monotonic)


@pytest.fixture
def relays(pool, transport, clock, outbox) -> Relays:
    return Relays(pool, {"default": transport}, outbox)


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
    other = Relays(pool, {"default": Scripted()}, Outbox(8, clock.monotonic))
    await other.learn()
    assert other.blocked("default")


async def test_many_mails_that_find_it_away_tell_it_once(relays, owner):
    await relays.record("default", decide(AWAY))
    first = rows(owner, "select changed_at from pgmail.relay")
    for _ in range(5):
        await relays.record("default", decide(AWAY))
    assert rows(owner, "select changed_at from pgmail.relay") == first


async def test_one_that_says_nothing_keeps_no_other_from_being_probed(pool, outbox, clock, owner):
    class Silent(Scripted):
        async def probe(self):
            self.probed += 1
            await asyncio.Event().wait()

    silent, well = Silent(), Scripted()
    relays = Relays(pool, {"a": silent, "b": well}, outbox)
    for name in ("a", "b"):
        await relays.record(name, decide(AWAY))
    clock.now += 5
    assert relays.to_probe() == ["a", "b"]
    hangs = asyncio.create_task(relays.probe_one("a"))
    await eventually(lambda: silent.probed)
    assert relays.to_probe() == ["b"]
    assert await relays.probe_one("b")
    assert told(owner, "b")[0] == "up"
    hangs.cancel()
    await asyncio.gather(hangs, return_exceptions=True)


async def test_what_the_fleet_is_told_names_nobody(relays, owner):
    said = Reply(535, "no such login: ada@example.org", "5.7.8")
    await relays.record("default", decide(Result(phase=Phase.AUTH, reply=said)))
    assert told(owner)[:2] == ("paused", "authentication_refused: 535 5.7.8 no such login: @")


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


async def test_a_probe_that_fails_waits_longer(pool, owner, clock, outbox):
    transport = Scripted(probes=[AWAY] * 4)
    relays = Relays(pool, {"default": transport}, outbox)
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


async def test_a_login_that_is_still_refused_stays_paused(pool, owner, clock, outbox):
    relays = Relays(pool, {"default": Scripted(probes=[LOCKED_OUT])}, outbox)
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


async def test_with_the_database_away_it_is_told_later_and_the_pause_is_not_forgotten(
    db, owner, clock, outbox
):
    async with cable_to(db.dsn_for("worker")) as cable:
        pool = Pool(cable.dsn(db.dsn_for("worker")), name="test", wait_seconds=0.3)
        await pool.open()
        await eventually(pool.reachable)  # which a slow machine may not be in the time set above
        relays = Relays(pool, {"default": Scripted(probes=[READY])}, outbox)
        owner.execute("select pgmail.pause_relay('default', 'moving house')")
        await relays.learn()
        cable.cut()
        with pytest.raises(DatabaseAway):
            await relays.learn()
        assert relays.blocked("default")
        await relays.record("default", decide(AWAY))  # raises nothing
        cable.mend()
        await pool.close()


@pytest.fixture
def several(pool, clock, outbox) -> Relays:
    return Relays(pool, {name: Scripted() for name in ("first", "second", "third")}, outbox)


def a_stream(*relays: str, weights: list[float] | None = None) -> StreamRow:
    return StreamRow(1, "news", relay=relays[0], relays=list(relays), relay_weights=weights)


async def test_of_relays_in_order_the_first_that_is_up_carries_the_mail(several):
    stream = a_stream("first", "second", "third")
    assert several.pick(stream) == "first"
    await several.record("first", decide(AWAY))
    assert several.pick(stream) == "second"
    await several.record("second", decide(LOCKED_OUT))
    assert several.pick(stream) == "third"
    await several.record("third", decide(AWAY))
    assert several.pick(stream) is None
    await several.record("second", decide(ACCEPTED))
    await several.record("first", decide(ACCEPTED))
    await several.learn()
    assert several.pick(stream) == "first"


async def test_a_relay_that_this_process_has_not_is_passed_over(several):
    assert several.pick(a_stream("elsewhere", "second")) == "second"
    assert several.pick(StreamRow(1, "news", relay="elsewhere")) is None
    assert several.pick(StreamRow(1, "news", relay="second")) == "second"


async def test_relays_share_by_weight_and_one_that_is_away_leaves_its_part_to_the_others(several):
    stream = a_stream("first", "second", "third", weights=[6, 3, 1])
    shares = Counter(several.pick(stream) for _ in range(6000))
    assert shares["first"] / 6000 == pytest.approx(0.6, abs=0.04)
    assert shares["third"] / 6000 == pytest.approx(0.1, abs=0.03)
    await several.record("first", decide(AWAY))
    shares = Counter(several.pick(stream) for _ in range(6000))
    assert shares["second"] / 6000 == pytest.approx(0.75, abs=0.04)
    assert "first" not in shares


def ramp(relays: Relays, outbox: Outbox, n: int, relay: str = "default") -> list[Job]:
    """So many jobs for a relay, put in front of the slots."""
    jobs = [a_job() for _ in range(n)]
    for job in jobs:
        job.relay = relay
        relays.ramp(job)
        outbox.put(job)
    return jobs


async def test_a_new_relay_is_ramped_up_to_by_one_more_for_each_mail_that_it_answers(relays):
    outbox = relays._outbox = Outbox(200, lambda: 0.0)
    relays._start_ramp("default")
    ramp(relays, outbox, 500)
    at_once = []
    for _ in range(5):
        busy = begin(outbox)
        at_once.append(len(busy))
        for job in busy:
            relays.well("default", decide(ACCEPTED))
            outbox.done(job)
    assert at_once == [1, 2, 4, 8, 16]


async def test_a_relay_that_answered_often_enough_is_bounded_no_more(relays, outbox):
    for _ in range(module.RAMP_DONE):
        relays.well("default", decide(ACCEPTED))
    jobs = ramp(relays, outbox, 20)
    assert not any(job.gates for job in jobs)
    assert outbox.gate(("ramp", "default")).limit is None


async def test_only_an_answer_ramps_up(relays, outbox):
    for result in (AWAY, LOCKED_OUT, Result(phase=Phase.DOT, error="reset")):
        relays.well("default", decide(result))
    assert outbox.gate(("ramp", "default")).limit == module.RAMP_START
    relays.well("default", decide(Result(phase=Phase.RCPT, reply=Reply(550, "no such user"))))
    assert outbox.gate(("ramp", "default")).limit == module.RAMP_START + 1


@pytest.mark.parametrize("by", ["a mail", "a probe", "an operator"])
async def test_a_relay_that_comes_back_is_ramped_up_to_anew(relays, outbox, owner, clock, by):
    for _ in range(module.RAMP_DONE):
        relays.well("default", decide(ACCEPTED))
    if by == "an operator":
        owner.execute("select pgmail.pause_relay('default', 'moving house')")
        await relays.learn()
        owner.execute("select pgmail.resume_relay('default')")
        await relays.learn()
    else:
        await relays.record("default", decide(AWAY))
        clock.now += 5
        if by == "a mail":
            await relays.record("default", decide(ACCEPTED))
            await relays.learn()
        else:
            assert await relays.probe()
    assert not relays.blocked("default")
    assert outbox.gate(("ramp", "default")).limit == module.RAMP_START
    ramp(relays, outbox, 5)
    assert len(begin(outbox)) == module.RAMP_START


async def test_an_answer_changes_nothing_only_where_the_relay_is_known_to_be_well(relays, owner):
    assert relays.well("default", decide(ACCEPTED))
    assert not relays.well("default", decide(AWAY))
    await relays.record("default", decide(AWAY))
    assert not relays.well("default", decide(ACCEPTED))
    await relays.record("default", decide(ACCEPTED))
    assert relays.well("default", decide(ACCEPTED))
    assert told(owner)[0] == "up"


class Allows:
    """A limiter that says how many connections there may be."""

    def __init__(self, n: int | None) -> None:
        self.n = n

    def allowed(self, name: str) -> int | None:
        return self.n


async def test_no_more_connections_are_held_than_there_are_permits_for_and_slots_to_fill_them(
    pool, open_relay, sink, monkeypatch
):
    smtp = open_relay(sink.port, "tls=none&max_connections=10")
    told: list[int] = []
    monkeypatch.setattr(smtp, "set_max_connections", told.append)
    transports = {"smtp": smtp, "other": Scripted()}
    relays = Relays(pool, transports, Outbox(100 * smtp.pipeline_depth, lambda: 0.0))
    for permits in (None, 4, 4, 50, 0, None):
        relays.obey(Allows(permits))
    assert told == [10, 4, 10, 0, 10]
    few = Relays(pool, transports, Outbox(2 * smtp.pipeline_depth + 1, lambda: 0.0))
    told.clear()
    for permits in (None, 2, None):
        few.obey(Allows(permits))
    assert told == [3, 2, 3]


async def test_relays_make_themselves_known_so_that_streams_may_name_them(several, owner):
    await several.learn()
    assert {name for (name,) in rows(owner, "select name from pgmail.relay")} >= {"first", "second", "third"}
