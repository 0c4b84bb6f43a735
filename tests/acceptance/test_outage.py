"""A relay that is away for a working day and comes back; twice the traffic for a while.

Whole workers against a server that refuses connections. Hours pass by the clocks that a test moves: the database's,
and the one that relays are watched with.
"""

import asyncio
import time
from datetime import timedelta
from statistics import quantiles

import pytest

from tests.sql.kit import differences, one, rows, send_many
from tests.waiting import eventually
from tests.worker.kit import ACCEPTED, AWAY, Crew, Recording, settled

HOURS = 8
CONNECTIONS = 3


class Clock:
    """The monotonic clock of relays, to be moved on."""

    def __init__(self):
        self.shift = 0.0

    def monotonic(self):
        return time.monotonic() + self.shift


@pytest.fixture
def relay_clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr("pgmail.worker.relays.time", made)
    return made


@pytest.fixture
def clocks(db_clock, relay_clock, db):
    return db_clock, relay_clock, db


@pytest.fixture
async def crew(db, sink):
    made = Crew(db, sink)
    yield made
    await made.dismiss()


def enqueue(app, n, site, **more):
    body = {"from": "a@example.com", "subject": "s", "text": "t", **more}
    for start in range(0, n, 2000):
        send_many(app, [{**body, "to": f"x{i}@{site}.example"} for i in range(start, min(n, start + 2000))])


@pytest.mark.parametrize("mails", [1000, pytest.param(10_000, marks=pytest.mark.long)])
async def test_eight_hours_without_the_relay_cost_nothing_but_time(clocks, app, owner, open_sink, mails):
    db_clock, relay_clock, db = clocks
    most = 0

    def watch(_):
        nonlocal most
        most = max(most, len(sink.connections))

    sink = await open_sink(rule=watch)
    crew = Crew(db, sink)
    await sink.stop()  # from now on it refuses connections
    urgent = expiring = mails // 20
    enqueue(app, mails - urgent - expiring, "news", priority="low")
    enqueue(app, expiring, "soon", expires_at=(db_clock.now() + timedelta(hours=4)).isoformat())
    await crew.hire({"default": crew.relay(f"tls=none&max_connections={CONNECTIONS}")}, concurrency=20)
    relay = "select state from pgmail.relay where name = 'default'"
    await eventually(lambda: one(owner, relay) == "away")
    enqueue(app, urgent, "reset", priority="high")

    probes = "select max(changed_at) from pgmail.relay where name = 'default'"
    for _ in range(HOURS * 2):
        before = one(owner, probes)
        relay_clock.shift += 1800
        db_clock.advance(1800)
        await eventually(lambda before=before: one(owner, probes) > before, 30)  # it was tried, and is away
    assert one(owner, relay) == "away"
    await eventually(
        lambda: one(owner, "select count(*) from pgmail.queue where expires_at is not null") == 0, 60
    )
    assert settled(owner) == {"queued": mails - expiring, "expired": expiring}
    assert one(owner, "select max(attempts) from pgmail.queue") == 0
    assert one(owner, "select max(rescues) from pgmail.queue") == 0

    await sink.start()
    relay_clock.shift += 120
    db_clock.advance(120)
    await eventually(
        lambda: sink.total >= mails - expiring, 60 + mails / 20
    )  # a recount all the time would slow it down
    await eventually(lambda: settled(owner) == {"sent": mails - expiring, "expired": expiring})
    to = [mail.recipient.rpartition("@")[2] for mail in sink.accepted]
    assert len(to) == sink.total == mails - expiring  # each once
    assert set(sink.by_recipient.values()) == {1}
    assert "soon.example" not in to
    # Urgent ones first: but for what was on its way, and the small share that keeps low mail moving.
    last = len(to) - 1 - to[::-1].index("reset.example")
    assert last < urgent * 1.3 + 40
    assert most <= CONNECTIONS
    assert rows(owner, "select distinct attempts from pgmail.outcome where state = 'sent'") == [(1,)]
    assert differences(owner) == [0]
    await crew.dismiss()


async def test_a_second_relay_takes_over_and_mail_returns_to_the_first(
    db_clock, relay_clock, app, owner, crew
):
    first, second = Recording(otherwise=AWAY), Recording()
    first.probes_as(AWAY)
    await crew.hire({"first": first, "second": second, "default": Recording()})
    await eventually(
        lambda: one(owner, "select count(*) from pgmail.relay where name in ('first', 'second')") == 2
    )
    owner.execute("""select pgmail.save_stream('news', '{"relay": ["first", "second"]}')""")
    enqueue(app, 300, "a", stream="news")
    await eventually(lambda: settled(owner) == {"sent": 300}, 30)
    assert rows(owner, "select relay, max(attempts), count(*) from pgmail.outcome group by 1") == [
        ("second", 1, 300)
    ]
    first.otherwise = ACCEPTED
    first.probes_as(None)
    relay_clock.shift += HOURS * 3600
    db_clock.advance(HOURS * 3600)
    await eventually(lambda: one(owner, "select state from pgmail.relay where name = 'first'") == "up")
    await eventually(lambda: sent_by_first(app, owner), 30)
    assert differences(owner) == [0]


def sent_by_first(app, owner):
    """Send one more and tell whether the first relay took any."""
    enqueue(app, 1, "b", stream="news")
    return one(owner, "select count(*) from pgmail.outcome where relay = 'first'")


async def test_twice_the_traffic_for_a_while_grows_the_queue_and_urgent_mail_does_not_feel_it(
    app, owner, crew
):
    """Five minutes, scaled: traffic of twice what the relay takes for three seconds, then what it takes half of."""
    takes, slots = 0.02, 4
    rate = 0.5 * slots / takes  # a second: what it surely takes
    transport = Recording(takes=takes)
    await crew.hire({"default": transport}, concurrency=slots)
    urgent_at, deepest = {}, 0
    began = time.monotonic()
    while (now := time.monotonic() - began) < 5.0:
        batch = int(rate * 0.25 * (4 if now < 3.0 else 0.5))
        enqueue(app, batch, f"bulk{int(now)}")
        name = f"u{len(urgent_at)}"
        urgent_at[f"x0@{name}.example"] = time.monotonic()
        enqueue(app, 1, name, priority="high")
        deepest = max(deepest, one(owner, "select count(*) from pgmail.queue"))
        next_at = began + (int(now / 0.25) + 1) * 0.25
        await asyncio.sleep(max(0.0, next_at - time.monotonic()))
    assert deepest > rate
    await eventually(lambda: one(owner, "select count(*) from pgmail.queue") == 0, 60)
    begun = dict(zip(transport.begun_to, transport.begun_at, strict=True))
    waits = [begun[to] - at for to, at in urgent_at.items()]
    assert quantiles(waits, n=20)[-1] < 1.0
    assert transport.most <= slots
    assert differences(owner) == [0]
