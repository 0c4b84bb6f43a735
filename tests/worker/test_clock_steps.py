"""The wall clock of a worker's machine steps by a day, either way: no mail is lost, expired or sent twice.

Whatever a worker times by itself, it times with the monotonic clock; what is due, and what has expired, the
database says. And the database's clock may step back: a standby that is promoted has another one.
"""

import asyncio
import datetime as dt
import time
from datetime import timedelta

import pytest

from pgmail.domain.reply import Phase, Reply, Result
from pgmail.store import limits as store
from pgmail.worker.lanes import LaneBook
from pgmail.worker.limiter import Limiter
from pgmail.worker.outbox import Outbox
from pgmail.worker.relays import MOST_AWAY_SECONDS, Relays
from tests.sql.kit import differences, rows, send, state
from tests.waiting import eventually
from tests.worker.kit import NOON, Clock, Scripted, leased, settled

DAY = 86_400.0
NOT_NOW = Result(phase=Phase.RCPT, reply=Reply(451, "later", "4.2.0"))


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch):
    """Step the wall clock of this process: `wall(seconds)`, from the true time."""
    true = time.time

    def step(seconds: float) -> None:
        monkeypatch.setattr(time, "time", lambda: true() + seconds)
        monkeypatch.setattr(time, "time_ns", lambda: int((true() + seconds) * 1e9))

    class Stepped(dt.datetime):
        @classmethod
        def now(cls, tz=None):
            return dt.datetime.fromtimestamp(time.time(), tz)

    for name in ("pgmail.worker.lanes.datetime", "pgmail.clock.datetime"):
        monkeypatch.setattr(name, Stepped)
    return step


def hence(owner, seconds):
    """A moment, by the database's clock, as a sender writes it."""
    return rows(owner, "select clock_timestamp() + %s * interval '1 second'", [seconds])[0][0].isoformat()


def test_the_present_is_the_databases_and_passes_by_the_monotonic_clock(wall):
    clock = Clock()
    book = LaneBook(clock)
    book.time_is(NOON)
    wall(DAY)
    clock.now += 5
    assert book.present() == NOON + timedelta(seconds=5)
    wall(-DAY)
    assert book.present() == NOON + timedelta(seconds=5)


@pytest.mark.parametrize("step", [DAY, -DAY])
async def test_a_step_while_mail_waits_and_while_it_is_on_the_wire_changes_nothing(
    *, db, app, owner, crew, wall, step
):
    relay = Scripted()
    relay.gate = asyncio.Event()
    await crew.hire({"default": relay}, concurrency=2)
    expires = hence(owner, 3600)
    mails = [send(app, to=[f"u{n}@example.org"], expires_at=expires) for n in range(12)]
    await eventually(lambda: relay.begun == 1)
    wall(step)
    relay.gate.set()
    await eventually(lambda: settled(owner) == {"sent": 12})
    assert sorted(envelope.recipient for envelope in relay.delivered) == sorted(
        f"u{n}@example.org" for n in range(12)
    )
    assert {state(app, mail) for mail in mails} == {"sent"}
    assert leased(owner) == 0
    assert differences(owner) == [0]


async def test_mail_that_expired_by_the_databases_time_is_not_sent_by_a_clock_that_is_late(
    *, db, app, owner, crew, wall
):
    """The worker's clock is a day behind; while the mail waited for its relay its time was over."""
    relay = Scripted()
    relay.gate = asyncio.Event()
    wall(-DAY)
    await crew.hire({"default": relay}, concurrency=1)
    first = send(app)
    await eventually(lambda: relay.begun == 1)
    expires = hence(owner, 2)
    late = send(app, expires_at=expires)
    await eventually(lambda: rows(owner, "select clock_timestamp() > %s::timestamptz", [expires])[0][0])
    relay.gate.set()
    await eventually(lambda: state(app, late) == "expired")
    assert state(app, first) == "sent"
    assert relay.begun == 1


@pytest.mark.parametrize("step", [DAY, -DAY])
async def test_the_age_of_a_deferred_mail_does_not_come_from_the_machines_clock(
    *, db, app, owner, crew, wall, step
):
    """A day ahead it would be too old at once and die; the age counts from its first try, by the database."""
    owner.execute(
        "update pgmail.stream set max_age_seconds = 3600, retry_base_seconds = 0.2, retry_jitter = 0"
    )
    relay = Scripted(NOT_NOW, NOT_NOW)
    wall(step)
    await crew.hire({"default": relay})
    mail = send(app)
    await eventually(lambda: state(app, mail) == "sent")
    assert relay.begun == 3


# --- the database's clock ---


async def test_a_limit_goes_on_when_the_databases_clock_steps_back(db, db_clock, owner, pool):
    """Its last token lies a day ahead then; nobody is to wait for that day."""
    owner.execute("select pgmail.set_limit('site', 'big.example', 100, 1::real, null, 0)")
    epoch = rows(owner, "select pgmail.worker_start_v1('host', 1, 'worker', 8)")[0][0]
    limiter = Limiter(pool, lambda: epoch, Outbox(10, time.monotonic), time.monotonic)
    limiter.learn(await store.limits(pool))
    key = ("site", "big.example")
    await limiter.fetch({(key,): 5})
    assert len(limiter.reserve((key,), 5) or []) == 5
    db_clock.advance(-DAY)

    async def more() -> bool:
        await limiter.fetch({(key,): 5})
        return bool(limiter.reserve((key,), 1))

    await eventually(more, 5)


def test_somebody_can_lead_when_the_databases_clock_stepped_back(owner):
    """The leader's lease ran by a clock that was a day ahead, and the leader is gone."""
    owner.execute("update pgmail.leader set epoch = 41, until = clock_timestamp() + interval '1 day'")
    assert rows(owner, "select pgmail.lead_v1(42, 5)") == [(True,)]
    assert rows(owner, "select pgmail.lead_v1(43, 5)") == [(False,)]
    assert rows(owner, "select pgmail.lead_v1(42, 5)") == [(True,)]


async def test_a_relay_that_was_found_away_is_probed_though_the_clock_says_tomorrow(owner, pool):
    owner.execute(
        "update pgmail.relay set state = 'away', reason = 'gone', changed_by = 'worker',"
        " blocked_until = pgmail.now() + interval '1 day' where name = 'default'"
    )
    relays = Relays(pool, {"default": Scripted()}, Outbox(8, time.monotonic))
    await relays.learn()
    assert relays.blocked("default")
    assert relays.wait_seconds() <= MOST_AWAY_SECONDS
